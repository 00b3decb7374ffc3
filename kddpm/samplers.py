"""From noise to a picture: the steps of the reverse process and the one loop that takes them.

A sampler is a table of coefficients, a row for each step in the order they are taken. With the noise that the denoiser
predicts, every step is

    (1)  x_0    = a x_t + b eps,  a = 1 / sqrt(alpha_bar_t),  b = -sqrt(1 - alpha_bar_t) / sqrt(alpha_bar_t)
         clipped to [-1, 1] if wanted
    (2)  x_prev = c x_0 + d x_t + sigma z,  z ~ N(0, 1)

and the samplers differ in c, d and sigma:

    (3)  Ancestral (Ho et al. 2020, algorithm 2 and eq. 7): c, d of the posterior mean; sigma^2 = the posterior variance
         ("small") or beta ("large"); sigma = 0 at the last step.
    (4)  DDIM (Song et al. 2021, eq. 12 and 16): sigma = eta sqrt(posterior variance), and with
         k = sqrt(1 - alpha_bar_prev - sigma^2) along the noise that belongs to the clipped x_0,
         d = k / sqrt(1 - alpha_bar_t),  c = sqrt(alpha_bar_prev) - d sqrt(alpha_bar_t).

Fewer steps than T come from a respaced schedule, whose betas are those between the kept steps. A denoiser is any
callable (x_t, t) -> eps on tensors (B, H, W, C) and int32 (B,); nothing here knows a model or a file.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kddpm import noise
from kddpm.errors import InputError
from kddpm.schedules import NoiseSchedule, trailing_timesteps


@dataclasses.dataclass(frozen=True)
class StepTable:
    """The coefficients of equations (1) and (2), float64 (steps,) each, in the order the steps are taken.

    Attributes:
        timesteps: t of each step as the network knows it, int64 (steps,).
        x0_from_xt, x0_from_eps: a and b.
        prev_from_x0, prev_from_xt, noise_std: c, d and sigma.
        clip: whether x_0 is clipped to [-1, 1].
    """

    timesteps: np.ndarray
    x0_from_xt: np.ndarray
    x0_from_eps: np.ndarray
    prev_from_x0: np.ndarray
    prev_from_xt: np.ndarray
    noise_std: np.ndarray
    clip: bool

    @property
    def num_steps(self) -> int:
        """Number of steps, each one network call."""
        return len(self.timesteps)

    def step(self, x_t, eps, index, z=None):
        """x_prev from x_t, equations (1) and (2).

        Args:
            x_t: float32 (B, ...).
            eps: the denoiser's prediction at x_t, like x_t.
            index: int32 scalar, which step.
            z: standard normal noise like x_t, None = none.
        """

        def at(table):
            return tf.gather(table.astype(np.float32), index)

        x_0 = at(self.x0_from_xt) * x_t + at(self.x0_from_eps) * eps
        if self.clip:
            x_0 = tf.clip_by_value(x_0, -1.0, 1.0)
        x_prev = at(self.prev_from_x0) * x_0 + at(self.prev_from_xt) * x_t
        return x_prev if z is None else x_prev + at(self.noise_std) * z


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Algorithm 2 of Ho et al. 2020, equation (3).

    Args:
        variance: "small" (posterior), "large" (beta), or one variance for each step in increasing t; the first, that of
            the last step taken, is not used.
        clip: whether the predicted x_0 is clipped to [-1, 1].
    """

    variance: str | tuple[float, ...] = "small"
    clip: bool = True

    def __post_init__(self):
        if isinstance(self.variance, str):
            if self.variance not in ("small", "large"):
                raise InputError(f'`variance` must be "small", "large" or a sequence. Received: {self.variance!r}')
            return
        try:
            object.__setattr__(self, "variance", tuple(float(v) for v in self.variance))
        except (TypeError, ValueError):
            text = f'`variance` must be "small", "large" or a sequence of numbers. Received: {self.variance!r}'
            raise InputError(text) from None
        if not all(np.isfinite(v) and v >= 0 for v in self.variance):
            raise InputError(f"`variance` must hold finite numbers >= 0. Received: {self.variance}")

    def table(self, schedule: NoiseSchedule) -> StepTable:
        """The coefficients on a (respaced) schedule."""
        if self.variance == "small":
            variances = schedule.posterior_variances
        elif self.variance == "large":
            variances = schedule.betas
        elif len(self.variance) == schedule.num_timesteps:
            variances = np.array(self.variance)
        else:
            raise InputError(
                f"`variance` must have one entry for each of {schedule.num_timesteps} steps. "
                f"Received: {len(self.variance)} entries"
            )
        std = np.sqrt(variances)
        std[0] = 0.0  # z = 0 at the last step
        return _table(schedule, schedule.posterior_coefs_x0, schedule.posterior_coefs_xt, std, self.clip)


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Song et al. 2021), equation (4).

    Args:
        eta: 0 = deterministic, 1 = as much noise as the posterior.
        clip: whether the predicted x_0 is clipped to [-1, 1].
    """

    eta: float = 0.0
    clip: bool = True

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise InputError(f"`eta` must lie in [0, 1]. Received: {self.eta}")

    def table(self, schedule: NoiseSchedule) -> StepTable:
        """The coefficients on a (respaced) schedule."""
        std = self.eta * np.sqrt(schedule.posterior_variances)
        direction = np.sqrt(schedule.one_minus_alpha_bars_prev - std**2)
        from_xt = direction / np.sqrt(schedule.one_minus_alpha_bars)
        from_x0 = np.sqrt(schedule.alpha_bars_prev) - from_xt * np.sqrt(schedule.alpha_bars)
        return _table(schedule, from_x0, from_xt, std, self.clip)


BY_NAME = {"ancestral": Ancestral, "ddim": DDIM}
Sampler = Ancestral | DDIM


def by_name(sampler: str | Sampler, **options) -> Sampler:
    """The sampler of that name, `options` being its arguments; a sampler passes through."""
    if isinstance(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str) or sampler not in BY_NAME:
        raise InputError(f"`sampler` must be one of {', '.join(BY_NAME)}, or a sampler. Received: {sampler!r}")
    return BY_NAME[sampler](**options)


def name_of(sampler: Sampler) -> str:
    """The name by which `by_name` finds it."""
    return next(name for name, kind in BY_NAME.items() if isinstance(sampler, kind))


def step_table(sampler: Sampler, schedule: NoiseSchedule, num_steps: int | Sequence[int] | None = None) -> StepTable:
    """The coefficients of a sampler in fewer steps.

    Args:
        sampler: an `Ancestral` or a `DDIM`.
        schedule: of all T steps.
        num_steps: how many steps, evenly spaced and ending at T - 1; or the steps themselves, increasing and ending at
            T - 1; None = all T.

    Raises:
        InputError: more steps than T, or steps that leave out T - 1, where the noise is.
    """
    if num_steps is None:
        return sampler.table(schedule)
    if not isinstance(num_steps, Sequence | np.ndarray):
        num_steps = trailing_timesteps(schedule.num_timesteps, num_steps)
    respaced = schedule.respace(num_steps)
    if num_steps[-1] != schedule.num_timesteps - 1:
        raise InputError(
            f"`num_steps` must end at T - 1 = {schedule.num_timesteps - 1}, where sampling starts. "
            f"Received: a last step of {num_steps[-1]}"
        )
    return sampler.table(respaced)


def initial_noise(seeds, image_shape: Sequence[int]):
    """x_T for int32 seeds (B,): float32 (B, *image_shape)."""
    return noise.normal(seeds, noise.INITIAL_STREAM, 0, tuple(image_shape))


def take_step(denoiser: Callable, table: StepTable, x, seeds, index):
    """One step: x_t before it to x_t after it.

    Args:
        denoiser: (x_t, t) -> eps.
        table: the steps.
        x: float32 (B, H, W, C), x_t before the step; `initial_noise` at step 0.
        seeds: int32 (B,), one an image; the noise of step i of image k is a function of (seeds[k], i).
        index: int32 scalar, which step.

    Returns:
        float32 (B, H, W, C).
    """
    batch, *image_shape = x.shape
    t = tf.fill([batch], tf.gather(table.timesteps.astype(np.int32), index))
    z = noise.normal(seeds, noise.STEP_STREAM, index, tuple(image_shape)) if np.any(table.noise_std) else None
    return tf.ensure_shape(table.step(x, denoiser(x, t), index, z), x.shape)


def walk(denoiser: Callable, table: StepTable, x, seeds, start=0, stop=None):
    """Take the steps start .. stop - 1 in one `tf.while_loop`.

    Args:
        denoiser: (x_t, t) -> eps.
        table: the steps.
        x: as in `take_step`.
        seeds: as in `take_step`.
        start: first step, int32 scalar or number.
        stop: one past the last step, None = all.

    Returns:
        float32 (B, H, W, C), x_t after the last step taken; after all of them, the image in [-1, 1].
    """

    def body(index, x_t):
        return index + 1, take_step(denoiser, table, x_t, seeds, index)

    stop = tf.convert_to_tensor(table.num_steps if stop is None else stop, tf.int32)
    start = tf.convert_to_tensor(start, tf.int32)
    return tf.while_loop(lambda index, _: index < stop, body, (start, x), parallel_iterations=1)[1]


def _table(schedule, from_x0, from_xt, std, clip) -> StepTable:
    """Equation (1) and the given coefficients of equation (2), turned into walking order."""
    a = 1 / np.sqrt(schedule.alpha_bars)
    b = -np.sqrt(schedule.one_minus_alpha_bars) * a
    return StepTable(*(column[::-1] for column in (schedule.timesteps, a, b, from_x0, from_xt, std)), clip=clip)
