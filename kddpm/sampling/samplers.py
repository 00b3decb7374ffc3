"""Samplers, from noise to a picture, as rows of coefficients.

A row is one call of the network (`kddpm.walks` runs them in one loop inside the graph):

    (1)  x_0  = a x + b output,  clipped if wanted
    (2)  x'   = c x_0 + d x + e m + sigma z,  z ~ N(0, 1),  and for a sampler with a memory m,  m' = f x_0 + g x + h m

The samplers differ in c to h and sigma. With s = sqrt(alpha_bar), n = sqrt(1 - alpha_bar) at t, and s', n' at t_prev:

    (3)  Ancestral (Ho et al. 2020, algorithm 2 and eq. 7): c, d of the posterior mean; sigma^2 = the posterior variance
         ("small"), beta ("large") or from the network ("learned"); sigma = 0 at the last step.
    (4)  DDIM (Song et al. 2021, eq. 12 and 16): sigma = eta sqrt(posterior variance), and with
         k = sqrt(n'^2 - sigma^2), the factor of the noise that follows from the clipped x_0,  d = k / n,  c = s' - d s.
    (5)  DPMSolver, DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): with lambda = log(s / n) and h = lambda' - lambda,
         x' = n'/n x + s' (1 - exp(-h)) D,  D = (1 + w) x_0 - w m,  w = min(h, max(h_before, 1/2)) / (2 h_before),
         m' = x_0, with h_before of the step before; w = 0 at the first step, which has no memory, and at the last,
         whose h is infinite. Lu et al.'s w = h / (2 h_before) draws a line through both x_0 and reads it in the middle
         of the step. Where a step is long, and longer than the one before, that is too far, and samples overshoot.
    (6)  Heun on the probability-flow ODE (Karras et al. 2022, algorithm 1): two rows a step. In z = x / n and w = s / n
         the ODE is dz/dw = x_0. Euler's row stores half of its step in m'; the second row, at t_prev, adds the other
         half with the x_0 found there. The last step, to an infinite w, is Euler's only. Karras et al. integrate in
         x / s and n / s, where a step that changes n / s tenfold, like the first of a cosine schedule, overshoots by
         as much.
         With churn (algorithm 2) each of N steps but the first begins at a higher level. The row before ends there:
         x'' = s''/s' x' + churn_noise s'' sqrt(u''^2 - u'^2) z,  u = n / s,  u'' = (1 + min(churn / N, sqrt(2) - 1)) u'
         rounded to a level of the schedule.
    (7)  PredictorCorrector (Song et al. 2021b, algorithms 3 and 5): after each ancestral row, Langevin rows at t_prev,
         x' = x + delta score + sqrt(2 delta) z,  score = (s x_0 - x) / n^2,  delta = 2 alpha snr^2 n^2: the authors'
         step size with the mean of |score|^2 for one known picture, d / n^2 (d elements), so that no image depends on
         others.

Fewer steps than T use a respaced schedule, whose betas are those between the kept steps; a and b remain those of the
schedule that the network was trained on.
"""

import abc
import dataclasses
import math
from typing import ClassVar, Protocol

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Config, Integers
from kddpm.sampling.step_table import Rows, StepTable
from kddpm.theory import parametrization
from kddpm.theory.parametrization import Objective
from kddpm.theory.schedules import SPACINGS, NoiseSchedule, checked_steps, timestep_grid

_SAFE_STEP = 0.5  # of log(s / n), up to which DPM-Solver++ extrapolates however short the step before was


class HasRows(Protocol):
    """A `Sampler`, or an `Inversion`."""

    @property
    def clip(self) -> bool | str:
        """As in `Sampler`."""

    @property
    def spacing(self) -> str:
        """As in `Sampler`."""

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """As in `Sampler`."""

    def rows_in(self, schedule: NoiseSchedule, kept: np.ndarray, variance: str = "small") -> Rows:
        """As in `Sampler`."""


@dataclasses.dataclass(frozen=True)
class Sampler(abc.ABC):
    """The base class of samplers, with the arguments that all of them have.

    Args:
        clip: whether the predicted x_0 is clipped to [-1, 1]; "dynamic" = to its own 99.5 % quantile if that is above
            1, and then divided by it (Saharia et al. 2022, section 2.3), for strong guidance.
        spacing: which steps are taken if there are fewer than T; see `schedules.timestep_grid`. "karras" is the default
            of the solvers of order 2, "trailing" that of the others; docs/solvers.md compares them.
    """

    memoryless: ClassVar[bool] = False  # whether a row is a whole step without memory, as inpainting needs
    clip: bool | str = dataclasses.field(default=True, kw_only=True)
    spacing: str = dataclasses.field(default="trailing", kw_only=True)

    def __post_init__(self):
        check_clip_and_spacing(self.clip, self.spacing)

    @abc.abstractmethod
    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return the rows on a (respaced) schedule, from noise to data; `variance` is the model's."""

    def rows_in(self, schedule: NoiseSchedule, kept: np.ndarray, variance: str = "small") -> Rows:
        """Return the rows in the steps `kept` of a schedule, with `at` an index into that schedule."""
        return respaced_rows(self, schedule, kept, variance)


@dataclasses.dataclass(frozen=True)
class Ancestral(Sampler):
    """Algorithm 2 of Ho et al. 2020, equation (3).

    Args:
        variance: "small" (posterior), "large" (beta), "learned", or one variance for each step in increasing t; the
            first belongs to the last step taken and is not used; None = the model's own.
        clip, spacing: see `Sampler`.
    """

    memoryless: ClassVar[bool] = True
    variance: str | tuple[float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.variance is None:
            return
        if isinstance(self.variance, str):
            if self.variance not in parametrization.VARIANCES:
                names = ", ".join(f'"{name}"' for name in parametrization.VARIANCES)
                raise InputError("variance", f"must be {names} or a sequence", repr(self.variance))
            return
        try:
            object.__setattr__(self, "variance", tuple(float(v) for v in self.variance))
        except (TypeError, ValueError):
            raise InputError("variance", "must be a name or a sequence of numbers", repr(self.variance)) from None
        if not all(np.isfinite(v) and v >= 0 for v in self.variance):
            raise InputError("variance", "must hold finite numbers >= 0", self.variance)

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return the ancestral steps of equation (3) on a (respaced) schedule; `variance` is the model's."""
        return _ancestral_rows(schedule, variance if self.variance is None else self.variance)


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models (Song et al. 2021), equation (4).

    Args:
        eta: 0 = deterministic, 1 = as much noise as the posterior.
        clip, spacing: see `Sampler`.
    """

    memoryless: ClassVar[bool] = True
    order: ClassVar[int] = 1
    eta: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eta", arguments.number("eta", self.eta))
        if not 0 <= self.eta <= 1:
            raise InputError("eta", "must lie in [0, 1]", self.eta)

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return the DDIM steps of equation (4) on a (respaced) schedule."""
        std = self.eta * np.sqrt(schedule.posterior_variances)
        rest = np.maximum(
            schedule.one_minus_alpha_bars_prev - std**2, 0.0
        )  # at eta = 1 after pure noise it is 0 up to rounding
        from_xt = np.sqrt(rest) / np.sqrt(schedule.one_minus_alpha_bars)
        from_x0 = np.sqrt(schedule.alpha_bars_prev) - from_xt * np.sqrt(schedule.alpha_bars)
        down = np.arange(schedule.num_timesteps)[::-1]
        return Rows(down, *(column[::-1] for column in (from_x0, from_xt, std)))


@dataclasses.dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022b), equation (5): a deterministic multistep solver, one network call a step.

    Args:
        clip, spacing: see `Sampler`.
    """

    order: ClassVar[int] = 2
    spacing: str = dataclasses.field(default="karras", kw_only=True)

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return the second-order steps of equation (5) on a (respaced) schedule."""
        down = np.arange(schedule.num_timesteps)[::-1]
        steps = np.diff(schedule.log_sigmas)[::-1]  # h of each step but the last, from noise to data
        ratio, towards = (column[::-1] for column in _euler(schedule))
        weight = np.zeros(len(down))
        weight[1:-1] = np.minimum(steps[1:], np.maximum(steps[:-1], _SAFE_STEP)) / (2 * steps[:-1])
        zero = np.zeros(len(down))
        return Rows(
            down, towards * (1 + weight), ratio, zero,
            from_memory=-towards * weight, memory_from_x0=zero + 1, memory_from_xt=zero, memory_from_memory=zero,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on the probability-flow ODE (Karras et al. 2022), equation (6): two network calls a step.

    Args:
        churn: noise taken in before the steps, S_churn of the paper's algorithm 2; 0 = none, and nothing is random.
            Noise levels are rounded to those of the schedule, so that little churn on few steps of T may be none.
        churn_min: noise level n / s from which on noise is taken in, S_tmin.
        churn_max: noise level up to which it is taken in, S_tmax; None = any.
        churn_noise: factor of the noise, S_noise.
        clip, spacing: see `Sampler`.
    """

    order: ClassVar[int] = 2
    spacing: str = dataclasses.field(default="karras", kw_only=True)
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("churn", "churn_min", "churn_max", "churn_noise"):
            if getattr(self, name) is None and name == "churn_max":
                continue
            object.__setattr__(self, name, arguments.number(name, getattr(self, name)))
            if getattr(self, name) < 0:
                raise InputError(name, "must be at least 0", getattr(self, name))

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return the Euler and Heun rows of equation (6) on a (respaced) schedule: 2 N - 1 rows for N steps."""
        return self.rows_in(schedule, np.arange(schedule.num_timesteps), variance)

    def rows_in(self, schedule: NoiseSchedule, kept: np.ndarray, variance: str = "small") -> Rows:
        """Return the rows in the steps `kept` of a schedule; churn leads to steps between them."""
        signal, noise_ = schedule.levels
        raised = self._raised(schedule, kept)
        begin, end = raised[::-1] + 1, np.append(-1, kept[:-1])[::-1] + 1  # of the levels, which begin with the data
        ratio = noise_[end] / noise_[begin]
        towards = signal[end] - signal[begin] * ratio
        step = np.repeat(np.arange(len(kept)), 2)[:-1]  # step of each row, from noise to data
        second = np.arange(len(step)) % 2 == 1
        ratio, towards, zero = np.where(second, 0.0, ratio[step]), towards[step], np.zeros(len(step))
        lift, std = zero + 1, zero.copy()
        lift[second], std[second] = (column[::-1] for column in self._churned(schedule, kept[:-1], raised[:-1]))
        return Rows(
            np.where(second, end[step], begin[step]) - 1,
            lift * np.where(second, towards / 2, towards), ratio, std, from_memory=np.where(second, lift, 0.0),
            memory_from_x0=np.where(second, 0.0, towards / 2), memory_from_xt=ratio, memory_from_memory=zero,
        )  # fmt: skip

    def _raised(self, schedule, kept):
        """Return the steps of the schedule at which the kept steps begin; the last of them, taken first, as it is."""
        log_sigmas, most = schedule.log_sigmas, np.inf if self.churn_max is None else self.churn_max
        with np.errstate(divide="ignore", over="ignore"):
            noisy = (log_sigmas >= np.log(self.churn_min)) & (log_sigmas <= np.log(most))
        wanted = log_sigmas + np.where(noisy, np.log1p(min(self.churn / len(kept), math.sqrt(2) - 1)), 0.0)
        nearest = np.searchsorted((log_sigmas[1:] + log_sigmas[:-1]) / 2, wanted[kept[:-1]])
        return np.append(np.maximum(nearest, kept[:-1]), kept[-1])

    def _churned(self, schedule, reached, raised):
        """Return by what x grows, and the deviation of the noise, from the steps reached to the raised ones."""
        lift = np.exp((schedule.log_alpha_bars[raised] - schedule.log_alpha_bars[reached]) / 2)
        kept = np.exp(2 * (schedule.log_sigmas[reached] - schedule.log_sigmas[raised]))  # share of the noise's variance
        return lift, self.churn_noise * np.sqrt(schedule.one_minus_alpha_bars[raised] * (1 - kept))


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Ancestral steps, each followed by Langevin steps that follow the score (Song et al. 2021b), equation (7).

    Args:
        corrections: Langevin steps after each ancestral step, one network call each.
        snr: signal-to-noise ratio that sets the Langevin step size.
        clip, spacing: see `Sampler`.
    """

    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "corrections", arguments.count("corrections", self.corrections))
        object.__setattr__(self, "snr", arguments.number("snr", self.snr))
        if not 0 < self.snr < 0.7:  # beyond 1 / sqrt(2) a step overshoots the mean
            raise InputError("snr", "must lie between 0 and 0.7", self.snr)

    def rows(self, schedule: NoiseSchedule, variance: str = "small") -> Rows:
        """Return ancestral and Langevin rows, equation (7), N (1 + corrections) - corrections of them for N steps."""
        predictor = _ancestral_rows(schedule, variance)
        share = 2 * schedule.alphas * self.snr**2  # delta / n^2
        count = 1 + self.corrections
        levels = np.repeat(np.arange(schedule.num_timesteps)[::-1], count)[: -self.corrections]
        correct = np.arange(len(levels)) % count > 0
        at = np.where(correct, levels - 1, levels)
        signal, variance_ = np.sqrt(schedule.alpha_bars), schedule.one_minus_alpha_bars
        corrector = {
            "from_x0": share * signal,
            "from_xt": 1 - share,
            "noise_std": np.sqrt(2 * share * variance_),
        }
        columns = {
            name: np.where(correct, column[at], getattr(predictor, name)[::-1][levels])
            for name, column in corrector.items()
        }
        if predictor.log_variance_range is None:
            return Rows(at, **columns)
        low, high = (np.where(correct, 0.0, end[::-1][levels]) for end in predictor.log_variance_range)
        return Rows(at, **columns, log_variance_range=(low, high))


def check_clip_and_spacing(clip: bool | str, spacing: str) -> None:
    """Check that `clip` and `spacing` are known.

    Raises:
        InputError: one of them is not.
    """
    if clip not in (True, False, "dynamic"):
        raise InputError("clip", 'must be True, False or "dynamic"', repr(clip))
    if spacing not in SPACINGS:
        raise InputError("spacing", f"must be one of {', '.join(SPACINGS)}", repr(spacing))


BY_NAME: dict[str, type[Sampler]] = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "dpm_solver": DPMSolver,
    "heun": Heun,
    "predictor_corrector": PredictorCorrector,
}
MEMORYLESS = [name for name, kind in BY_NAME.items() if kind.memoryless]  # those that inpaint


def by_name(sampler: str | Sampler, **options) -> Sampler:
    """Return the sampler with this name and these arguments, or a given sampler with these arguments replaced."""
    if isinstance(sampler, Sampler):
        return dataclasses.replace(sampler, **options)
    if not isinstance(sampler, str) or sampler not in BY_NAME:
        raise InputError("sampler", f"must be one of {', '.join(BY_NAME)}, or a sampler", repr(sampler))
    return BY_NAME[sampler](**options)


def name_of(sampler: Sampler) -> str:
    """Return the name by which `by_name` finds a sampler; for one of the user's own, the name of its class."""
    names = [name for name, kind in BY_NAME.items() if isinstance(sampler, kind)]
    return names[0] if names else type(sampler).__name__


def step_table(
    sampler: HasRows,
    schedule: NoiseSchedule,
    num_steps: int | Integers | None = None,
    objective: Objective | None = None,
    strength: float = 1.0,
) -> StepTable:
    """Return the coefficients of a sampler, in all T steps or fewer.

    Args:
        sampler: one of the samplers above.
        schedule: the schedule of all T steps.
        num_steps: how many steps, with the sampler's spacing; or the steps themselves, increasing and ending at T - 1;
            None = all T.
        objective: what the network was trained to predict, and its variance, for samplers that use the model's;
            None = eps and the posterior's.
        strength: t / T from which the steps are taken, as near as the steps come.

    Raises:
        InputError: more steps than T, steps that do not increase or do not end at T - 1; variances of another number; a
            learned variance of a model that has none; or a sampler that needs some signal in x_T on a schedule that
            leaves none.
    """
    objective = objective or Objective()
    whole = kept_steps(sampler, schedule, num_steps)
    kept = kept_steps(sampler, schedule, num_steps, strength)
    if isinstance(sampler, Ancestral) and isinstance(sampler.variance, tuple):
        taken: Config = {"variance": _checked_variances(sampler.variance, whole)[: len(kept)]}
        sampler = dataclasses.replace(sampler, **taken)
    if getattr(sampler, "variance", None) == "learned" and objective.variance != "learned":
        raise InputError("variance", "learned needs a model that learned one", f"a model with {objective.variance!r}")
    rows = sampler.rows_in(schedule, kept, objective.variance)
    a, b = (column[rows.at] for column in parametrization.x0_coefficients(schedule, objective.prediction))
    return StepTable(schedule.timesteps[rows.at], a, b, rows, sampler.clip)


def respaced_rows(sampler: HasRows, schedule: NoiseSchedule, kept: np.ndarray, variance: str) -> Rows:
    """Return the rows of a sampler that visits no other steps than those it keeps."""
    rows = sampler.rows(schedule if len(kept) == schedule.num_timesteps else schedule.respace(kept), variance)
    return dataclasses.replace(rows, at=kept[rows.at])


def kept_steps(
    sampler: HasRows,
    schedule: NoiseSchedule,
    num_steps: int | Integers | None = None,
    strength: float = 1.0,
) -> np.ndarray:
    """Return the indices of the steps that `step_table` takes with these arguments, increasing, int64 (N,).

    Raises:
        InputError: more steps than T, or steps that do not increase or do not end at T - 1.
    """
    kept = _kept_steps(schedule, num_steps, sampler.spacing)
    levels = np.append(0, kept + 1)  # noising steps behind the data and behind each x_t
    return kept[: np.argmin(np.abs(levels - strength * schedule.num_timesteps))]


def _kept_steps(schedule, num_steps, spacing) -> np.ndarray:
    """Return the indices of the steps to take, increasing, up to T - 1."""
    if num_steps is None:
        return np.arange(schedule.num_timesteps)
    if isinstance(num_steps, str) or np.ndim(num_steps) == 0:
        return timestep_grid(schedule, num_steps, spacing)
    kept = checked_steps("num_steps", num_steps, schedule.num_timesteps)
    if kept[-1] != schedule.num_timesteps - 1:
        raise InputError(
            "num_steps",
            f"must end at T - 1 = {schedule.num_timesteps - 1}, where sampling starts",
            f"a last step of {kept[-1]}",
        )
    return kept


def _checked_variances(variances, kept):
    """Check that there is one variance for each step, and return them."""
    if len(variances) != len(kept):
        raise InputError("variance", f"must have one entry for each of {len(kept)} steps", f"{len(variances)} entries")
    return variances


def _ancestral_rows(schedule, variance) -> Rows:
    """Return the rows of equation (3) for a variance by name or one for each step."""
    down = np.arange(schedule.num_timesteps)[::-1]
    learned: tuple[np.ndarray, np.ndarray] | None = None
    if isinstance(variance, tuple):
        std = np.sqrt(variance)
    elif variance == "learned":
        low, high = parametrization.log_variance_range(schedule)
        learned = (low[::-1], high[::-1])
        std = np.ones(len(down))
    else:
        std = np.sqrt(schedule.posterior_variances if variance == "small" else schedule.betas)
    std[0] = 0.0  # z = 0 at the last step
    from_x0, from_xt = schedule.posterior_coefs_x0[::-1], schedule.posterior_coefs_xt[::-1]
    return Rows(down, from_x0, from_xt, std[::-1], log_variance_range=learned)


def _euler(schedule):
    """Return n'/n and s' - s n'/n of every step, (T,) each.

    x' = n'/n x + (s' - s n'/n) x_0 is Euler's step, and DDIM's.
    """
    signal, noise_ = schedule.levels
    ratio = noise_[:-1] / noise_[1:]
    return ratio, signal[:-1] - signal[1:] * ratio
