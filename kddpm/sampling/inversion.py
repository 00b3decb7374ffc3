"""DDIM backwards, from data to noise, as rows of coefficients like those of `kddpm.samplers`.

(1)  x' is the x from which DDIM's step, clipping included, leads to x (Song et al. 2021, section 4.3). It needs
     fixed-point iteration, because x' is also the input of the network. With s = sqrt(alpha_bar), n = sqrt(1 -
     alpha_bar) at x, and s', n' at x':
     x' = s'/s x + (n' - s'/s n) eps  while there is more signal than noise (s s' > n n'),
     x' = n'/n x + (s' - n'/n s) x_0  afterwards: each form where it contracts faster.
"""

import dataclasses

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.sampling.samplers import check_clip_and_spacing, respaced_rows
from kddpm.sampling.step_table import Rows
from kddpm.theory.schedules import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Inversion:
    """DDIM backwards, from an image to the x_T from which DDIM in the same steps generates it, equation (1).

    It is not a `Sampler`, because it does not generate, but `clip` and `spacing` mean the same.

    Args:
        iterations: fixed-point iterations, each a network call, per step; 1 calls it only at the x of the step's start.
        clip, spacing: those of the `DDIM` sampler that generates the images again.
    """

    iterations: int = 3
    clip: bool | str = True
    spacing: str = "trailing"

    def __post_init__(self):
        check_clip_and_spacing(self.clip, self.spacing)
        object.__setattr__(self, "iterations", arguments.count("iterations", self.iterations))

    def rows_in(self, schedule: NoiseSchedule, kept: np.ndarray, variance: str = "small") -> Rows:
        """As `Sampler.rows_in`."""
        return respaced_rows(self, schedule, kept, variance)

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return the fixed-point iterations of equation (1) on a (respaced) schedule: `iterations` rows a step."""
        if schedule.zero_terminal_snr:
            raise InputError(
                "schedule", "must not end at alpha_bar = 0 (zero terminal SNR): no image is left to invert"
            )
        signal, noise_ = schedule.levels
        s, s_next, n, n_next = signal[:-1], signal[1:], noise_[:-1], noise_[1:]
        kept = np.sqrt(schedule.alphas)  # s' / s
        of_eps = n_next - kept * n  # times eps = (x' - s' x_0) / n' of the iterate
        early = s * s_next > n * n_next
        with np.errstate(divide="ignore", invalid="ignore"):  # n = 0 at the data, where the other form is used
            c = np.where(early, -of_eps * s_next / n_next, s_next - n_next / n * s)
            e = np.where(early, kept, n_next / n)
        d = np.where(early, of_eps / n_next, 0.0)
        at = np.repeat(np.arange(schedule.num_timesteps), self.iterations)
        c, d, e = c[at], d[at], e[at]
        last = np.arange(len(at)) % self.iterations == self.iterations - 1
        # The memory holds the x that the step starts from; the last iteration replaces it by x'.
        return Rows(at, c, d, np.zeros(len(at)), e, last * c, last * d, np.where(last, e, 1.0))
