"""Noise schedules: how much signal is left after each of T noising steps.

Index t is 0-based: index 0 is the first noising step (x_1 of the papers), T - 1 the last; before index 0 there is no
noise. Everything follows from beta_t (Ho et al. 2020, section 2):

    (1)  alpha_t = 1 - beta_t
    (2)  alpha_bar_t = alpha_0 alpha_1 ... alpha_t,  alpha_bar_{-1} = 1                                    (Ho, eq. 4)
    (3)  posterior variance  = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)                            (Ho, eq. 7)
    (4)  posterior mean      = c0_t x_0 + ct_t x_t                                                         (Ho, eq. 7)
         c0_t = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t)
         ct_t = sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)

Products are computed as sums of logarithms and 1 - alpha_bar as -expm1(log alpha_bar), so that neither end of the
schedule loses digits. All tables are float64 NumPy arrays of shape (T,) and read-only.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Integers

_KARRAS_RHO = 7
_KARRAS_RANGE = 0.002, 80.0  # of sigma, Karras et al. 2022, table 1
_MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last steps of a vanishing alpha_bar finite


class NoiseSchedule:
    """The tables of one schedule, equations (1) to (4).

    Args:
        betas: noise added by each step, shape (T,), each strictly between 0 and 1; the last may be 1, which leaves no
            signal at all ("zero terminal SNR").
        timesteps: the timestep that the network gets for each index, shape (T,), increasing. None = 0 .. T - 1. A
            respaced schedule keeps the timesteps of the schedule it was made from.

    Attributes:
        num_timesteps: T.
        timesteps: int64 (T,).
        betas, alphas, log_alpha_bars, alpha_bars, alpha_bars_prev: equations (1) and (2); `_prev` is at t - 1.
        one_minus_alpha_bars, one_minus_alpha_bars_prev: the variance of x_t given x_0.
        posterior_variances, posterior_coefs_x0, posterior_coefs_xt: equations (3) and (4); the variance is 0 at t = 0.

    Raises:
        InputError: betas of another shape, or outside (0, 1); timesteps that do not increase.

    Example:
        >>> schedule = kddpm.schedules.linear(num_timesteps=1000)
        >>> schedule.alpha_bars[-1]
        4.035829765375...e-05
    """

    def __init__(self, betas: Sequence[float] | np.ndarray, timesteps: Integers | None = None):
        try:
            self.betas = betas = np.array(betas, np.float64)
        except (TypeError, ValueError):
            raise InputError("betas", "must be a list of numbers", repr(betas)) from None
        if betas.ndim != 1 or betas.size == 0:
            raise InputError("betas", "must be a non-empty list of numbers", f"shape {betas.shape}")
        inside = (betas > 0) & (betas < 1)
        inside[-1] |= betas[-1] == 1
        outside = np.flatnonzero(~inside)
        if outside.size:
            t = outside[0]
            raise InputError("betas", "must lie strictly between 0 and 1", f"beta={betas[t]} at t={t}")
        self.num_timesteps = len(betas)
        self.timesteps = np.arange(len(betas)) if timesteps is None else checked_steps("timesteps", timesteps)
        if len(self.timesteps) != len(betas):
            raise InputError("timesteps", f"must have {len(betas)} entries, one a beta", len(self.timesteps))

        self.alphas = 1 - betas
        with np.errstate(divide="ignore"):  # log 0 if the last beta is 1
            self.log_alpha_bars = np.cumsum(np.log1p(-betas))
        log_alpha_bars_prev = np.concatenate([[0.0], self.log_alpha_bars[:-1]])
        self.alpha_bars, self.alpha_bars_prev = np.exp(self.log_alpha_bars), np.exp(log_alpha_bars_prev)
        self.one_minus_alpha_bars = -np.expm1(self.log_alpha_bars)
        self.one_minus_alpha_bars_prev = -np.expm1(log_alpha_bars_prev)

        noise_ratio = self.one_minus_alpha_bars_prev / self.one_minus_alpha_bars
        self.posterior_variances = betas * noise_ratio
        self.posterior_coefs_x0 = np.sqrt(self.alpha_bars_prev) * betas / self.one_minus_alpha_bars
        self.posterior_coefs_xt = np.sqrt(self.alphas) * noise_ratio
        for table in vars(self).values():
            if isinstance(table, np.ndarray):
                table.flags.writeable = False

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_T contains no signal at all."""
        return bool(self.betas[-1] == 1)

    @property
    def log_sigmas(self) -> np.ndarray:
        """log(sqrt((1 - alpha_bar) / alpha_bar)) of every step, noise over signal, (T,); inf without signal."""
        return (np.log(self.one_minus_alpha_bars) - self.log_alpha_bars) / 2

    @property
    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Signal sqrt(alpha_bar) and noise sqrt(1 - alpha_bar) of the data and of every step, (T + 1,) each."""
        signal = np.sqrt(np.concatenate([[1.0], self.alpha_bars]))
        return signal, np.sqrt(np.concatenate([[0.0], self.one_minus_alpha_bars]))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The steps from noise to data as (t, t_prev) pairs of `timesteps`; the last t_prev is -1, the data."""
        steps = [-1, *self.timesteps.tolist()]
        return list(zip(steps[:0:-1], steps[-2::-1], strict=True))

    def respace(self, timesteps: Integers) -> "NoiseSchedule":
        """Return the schedule that visits only some steps, with the same alpha_bar at each of them.

        Between two kept steps, beta' = 1 - alpha_bar_t / alpha_bar_t_prev (Nichol & Dhariwal 2021, section 4), at most
        the float64 below 1 where some signal is left.

        Args:
            timesteps: indices to keep, increasing, each in 0 .. T - 1; any subset.

        Raises:
            InputError: an empty list, an order that does not increase, an index out of range.
        """
        kept = checked_steps("timesteps", timesteps, self.num_timesteps)
        log_alphas = np.diff(self.log_alpha_bars[kept], prepend=0.0)
        betas = -np.expm1(log_alphas)
        betas[(betas == 1) & np.isfinite(log_alphas)] = np.nextafter(1, 0)  # 1 would say that no signal is left at all
        return NoiseSchedule(betas, self.timesteps[kept])

    def get_config(self) -> dict:
        """Return the arguments of `from_config` as JSON-ready lists; JSON preserves float64 exactly."""
        return {"betas": self.betas.tolist(), "timesteps": self.timesteps.tolist()}

    @classmethod
    def from_config(cls, config: dict) -> "NoiseSchedule":
        """Return the schedule whose `get_config` returned `config`."""
        return cls(**config)

    def __repr__(self):
        return f"NoiseSchedule(T={self.num_timesteps}, alpha_bar={self.alpha_bars[0]:.6g}..{self.alpha_bars[-1]:.3g})"


def linear(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
    """Return the schedule whose beta rises linearly from `start` to `end` (Ho et al. 2020, section 4)."""
    return NoiseSchedule(np.linspace(start, end, _steps(num_timesteps)))


def quadratic(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
    """Return the schedule whose sqrt(beta) rises linearly, the "scaled linear" of Rombach et al. 2022."""
    _check_ends(start, end)
    return NoiseSchedule(np.linspace(math.sqrt(start), math.sqrt(end), _steps(num_timesteps)) ** 2)


def constant(num_timesteps: int = 1000, beta: float = 0.01) -> NoiseSchedule:
    """Return the schedule with the same beta at every step."""
    return NoiseSchedule(np.full(_steps(num_timesteps), beta))


def cosine(num_timesteps: int = 1000, offset: float = 0.008) -> NoiseSchedule:
    """Return the schedule whose alpha_bar is a squared cosine (Nichol & Dhariwal 2021, eq. 17); betas clipped at 0.999.

    beta = sin(b - a) sin(b + a) / cos(a)^2, where a and b are the angles before and after the step. This equals
    1 - cos(b)^2 / cos(a)^2, but does not suffer from cancellation.
    """
    if not offset > 0:
        raise InputError("offset", "must be positive", f"offset={offset}")
    steps = _steps(num_timesteps)
    angles = (np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2
    before, after = angles[:-1], angles[1:]
    return NoiseSchedule(np.minimum(np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2, _MAX_BETA))


def sigmoid(num_timesteps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> NoiseSchedule:
    """Return the schedule whose alpha_bar is a sigmoid from `start` to `end`, at temperature `tau`.

    This is algorithm 1 of Jabri et al. 2022.
    """
    if not (end > start and tau > 0):
        raise InputError("sigmoid", "needs start < end and tau > 0", f"start={start}, end={end}, tau={tau}")

    def sigma(x):
        return 1 / (1 + math.exp(-x / tau))

    low, high = sigma(start), sigma(end)
    return from_alpha_bar(lambda u: (high - sigma(start + u * (end - start))) / (high - low), num_timesteps)


def variance_exploding(num_timesteps: int = 1000, sigma_min: float = 0.02, sigma_max: float = 100.0) -> NoiseSchedule:
    """Return the schedule whose sigma = sqrt((1 - alpha_bar) / alpha_bar) grows by a constant factor.

    y = x_t / sqrt(alpha_bar) is x_0 + sigma_t eps, the variance exploding process of Song & Ermon 2019; in x it is a
    schedule like any other: alpha_bar = 1 / (1 + sigma^2). A network of x is one of y with its input scaled to unit
    variance. The ends are those of Song et al. 2021b for CIFAR-10, 0.01 and 50 for pictures in [0, 1].

    Args:
        num_timesteps: T.
        sigma_min: of the first step, in units of pixels in [-1, 1].
        sigma_max: of the last.

    Raises:
        InputError: not 0 < sigma_min < sigma_max.
    """
    low, high = arguments.number("sigma_min", sigma_min), arguments.number("sigma_max", sigma_max)
    if not 0 < low < high:
        raise InputError("sigma_min", "must lie between 0 and {sigma_max}", sigma_min, sigma_max=sigma_max)
    return from_sigmas(np.geomspace(low, high, _steps(num_timesteps)))


def karras(num_timesteps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0) -> NoiseSchedule:
    """Return the schedule whose sigma^(1/7) rises linearly, sigma = sqrt((1 - alpha_bar) / alpha_bar).

    This is eq. 5 of Karras et al. 2022, whose steps count from the noise. T = 1 is sigma_max alone.
    """
    sigma_min, sigma_max = arguments.number("sigma_min", sigma_min), arguments.number("sigma_max", sigma_max)
    if not 0 < sigma_min < sigma_max:
        raise InputError("sigma_min", "must lie between 0 and {sigma_max}", sigma_min, sigma_max=sigma_max)
    share = np.linspace(1, 0, _steps(num_timesteps))[::-1]
    low, high = sigma_min ** (1 / _KARRAS_RHO), sigma_max ** (1 / _KARRAS_RHO)
    return from_sigmas((low + share * (high - low)) ** _KARRAS_RHO)


def flow(num_timesteps: int = 1000) -> NoiseSchedule:
    """Return the schedule of flow matching, y = (1 - tau) x_0 + tau eps, at tau = 1/T .. 1; betas are at most 0.999.

    A sample of this process over the norm sqrt((1 - tau)^2 + tau^2) is an x_t, with sigma = tau / (1 - tau) (Lipman et
    al. 2023, section 4.1; Liu et al. 2023).
    """
    steps = _steps(num_timesteps)
    taken = np.arange(1, steps + 1)
    with np.errstate(divide="ignore"):  # tau = 1 is pure noise
        sigmas = taken / (steps - taken)
    return NoiseSchedule(np.minimum(from_sigmas(sigmas).betas, _MAX_BETA))


def from_sigmas(sigmas: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """Return the schedule with these ratios of noise to signal, sigma = sqrt((1 - alpha_bar) / alpha_bar).

    beta = (sigma^2 - sigma_prev^2) / (1 + sigma^2), since alpha_bar = 1 / (1 + sigma^2).

    Args:
        sigmas: increasing positive numbers, (T,); the last may be infinite, which leaves no signal.

    Raises:
        InputError: the sigmas do not increase from above 0.
    """
    try:
        sigmas = np.array(sigmas, np.float64)
    except (TypeError, ValueError):
        raise InputError("sigmas", "must be increasing positive numbers", f"{sigmas!r:.80}") from None
    if sigmas.ndim != 1 or sigmas.size == 0 or not np.all(np.diff(sigmas, prepend=0.0) > 0):
        raise InputError("sigmas", "must be increasing positive numbers", f"{sigmas!r:.80}")
    before = np.append(0.0, sigmas[:-1])
    with np.errstate(invalid="ignore", over="ignore"):  # the infinite sigma has beta = 1
        betas = (sigmas - before) * (sigmas + before) / (1 + sigmas**2)
    return NoiseSchedule(np.where(np.isinf(sigmas), 1.0, betas))


def from_alpha_bar(function: Callable[[float], float], num_timesteps: int = 1000) -> NoiseSchedule:
    """Return the schedule of any decreasing alpha_bar(u), u from 0 (data) to 1 (noise); betas clipped at 0.999.

    Args:
        function: alpha_bar at u, a number in [0, 1]; scaled so that alpha_bar(0) = 1.
        num_timesteps: T; the function is evaluated at the T + 1 points u = t / T.

    Raises:
        InputError: the function does not decrease, or leaves [0, 1].
    """
    steps = _steps(num_timesteps)
    values = np.array([function(i / steps) for i in range(steps + 1)], np.float64)
    if not (np.all(np.diff(values) < 0) and values[0] <= 1 and values[-1] >= 0):
        raise InputError(
            "function",
            "must decrease strictly within [0, 1] as u goes from 0 to 1",
            f"alpha_bar(0)={values[0]}, alpha_bar(1)={values[-1]}",
        )
    return NoiseSchedule(np.minimum(1 - values[1:] / values[:-1], _MAX_BETA))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Return the schedule with sqrt(alpha_bar) shifted and scaled so that it ends at 0 (Lin et al. 2023, alg. 1).

    Sampling then starts from pure noise, as seen at the last step in training. It needs a network that does not predict
    eps: without signal, eps is x_t itself and says nothing about the image.

    Raises:
        InputError: the schedule has no signal left before its last step.
    """
    roots = np.sqrt(schedule.alpha_bars)
    if len(roots) > 1 and roots[-2] == 0:
        raise InputError("schedule", "must leave some signal before its last step", "alpha_bar = 0 in float64")
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1]) if len(roots) > 1 else np.zeros(1)
    alpha_bars = np.concatenate([[1.0], shifted**2])
    return NoiseSchedule(1 - alpha_bars[1:] / alpha_bars[:-1], schedule.timesteps)


BY_NAME: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "quadratic": quadratic,
    "constant": constant,
    "variance_exploding": variance_exploding,
    "karras": karras,
    "flow": flow,
}


def by_name(name: str, num_timesteps: int = 1000) -> NoiseSchedule:
    """Return the schedule with this name and its default shape, for flags and configurations."""
    if name not in BY_NAME:
        raise InputError("schedule", f"must be one of {', '.join(BY_NAME)}", repr(name))
    return BY_NAME[name](num_timesteps)


SPACINGS = ("trailing", "linspace", "quadratic", "karras")


def timestep_grid(schedule: NoiseSchedule, num_steps: int, spacing: str = "trailing") -> np.ndarray:
    """Return which `num_steps` of the T steps to take.

        trailing   evenly spaced, counted from the end (Lin et al. 2023, table 2)
        linspace   evenly spaced, from 0 to T - 1
        quadratic  evenly spaced square roots: more steps near the data (Song et al. 2021, appendix D.2)
        karras     evenly spaced sigma^(1/7), sigma = sqrt((1 - alpha_bar) / alpha_bar), over the schedule's sigmas
                   between 0.002 and 80 (Karras et al. 2022, eq. 5), with T - 1 in place of the last

    Args:
        schedule: the schedule of all T steps.
        num_steps: how many to take.
        spacing: one of the above. If rounding gives a step twice, its neighbour is taken instead.

    Returns:
        int64 (num_steps,), increasing, ending at T - 1.

    Raises:
        InputError: `num_steps` is not an integer in 1 .. T, or the spacing is unknown.
    """
    last = schedule.num_timesteps - 1
    if not _is_count(num_steps) or num_steps > last + 1:
        raise InputError("num_steps", f"must be an integer in 1 .. {last + 1} (T)", repr(num_steps))
    if spacing not in SPACINGS:
        raise InputError("spacing", f"must be one of {', '.join(SPACINGS)}", repr(spacing))
    if num_steps == 1:
        return np.array([last])
    if spacing == "trailing":
        steps = np.round(np.arange(1, num_steps + 1) * ((last + 1) / num_steps)) - 1
    elif spacing == "linspace":
        steps = np.linspace(0, last, num_steps)
    elif spacing == "quadratic":
        steps = np.linspace(0, math.sqrt(last), num_steps) ** 2
    else:
        low, high = np.exp(np.clip(schedule.log_sigmas[[0, -1]], *np.log(_KARRAS_RANGE)) / _KARRAS_RHO)
        wanted = _KARRAS_RHO * np.log(np.linspace(low, high, num_steps))
        steps = np.interp(wanted, schedule.log_sigmas, np.arange(last + 1))
    steps = np.round(steps).astype(np.int64)
    steps[-1] = last
    room = np.arange(num_steps)
    steps = np.maximum.accumulate(steps - room) + room  # each is greater than the one before ...
    return np.minimum(steps, last - room[::-1])  # ... and leaves room for those after it


def checked_steps(name: str, steps: object, num_timesteps: int | None = None) -> np.ndarray:
    """Check that `steps` are increasing integers, and return them as int64 (N,).

    Raises:
        InputError: they are not, there are none, or some lie outside 0 .. num_timesteps - 1.
    """
    array = np.array(steps)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu" or np.any(np.diff(array) <= 0):
        raise InputError(name, "must be increasing integers", repr(steps))
    if num_timesteps is not None and not (array[0] >= 0 and array[-1] < num_timesteps):
        raise InputError(name, f"must lie in 0 .. {num_timesteps - 1}", f"{array[0]} .. {array[-1]}")
    return array.astype(np.int64)


def _steps(num_timesteps) -> int:
    """Check that T is a positive integer, and return it."""
    if not _is_count(num_timesteps):
        raise InputError("num_timesteps", "must be a positive integer", repr(num_timesteps))
    return int(num_timesteps)


def _is_count(value) -> bool | np.bool_:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def _check_ends(start, end):
    if not (0 < start < 1 and 0 < end < 1):
        raise InputError("start", "and `end` must lie strictly between 0 and 1", f"start={start}, end={end}")
