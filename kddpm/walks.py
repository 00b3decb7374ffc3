"""The one loop of all samplers: a table of coefficients, a row for each call of the network, walked inside the graph.

    (1)  x_0  = a x + b output,  clipped if wanted           a, b of what the network predicts (`kddpm.parametrization`)
    (2)  x'   = c x_0 + d x + e m + sigma z,  z ~ N(0, 1)
         m'   = f x_0 + g x + h m,                           a memory, for the samplers that have one

`kddpm.samplers` says what c to h and sigma are. A denoiser is any callable (x_t, t) -> output on tensors (B, H, W, C)
and int32 (B,); nothing here knows a model or a file.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kddpm import noise
from kddpm.process import learned_log_variance

_DYNAMIC_QUANTILE = 0.995  # Saharia et al. 2022, section 2.3


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a sampler makes of a (respaced) schedule: equation (2), arrays (rows,) in the order they are taken.

    Attributes:
        at: index into the schedule of the t at which the network is asked.
        from_x0, from_xt, noise_std: c, d and sigma.
        from_memory: e; None = no memory.
        memory_from_x0, memory_from_xt, memory_from_memory: f, g and h; None = no memory.
        log_variance_range: where sigma is learned, the two ends of its log-variance; `noise_std` is a factor then.
    """

    at: np.ndarray
    from_x0: np.ndarray
    from_xt: np.ndarray
    noise_std: np.ndarray
    from_memory: np.ndarray | None = None
    memory_from_x0: np.ndarray | None = None
    memory_from_xt: np.ndarray | None = None
    memory_from_memory: np.ndarray | None = None
    log_variance_range: tuple[np.ndarray, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class StepTable:
    """All coefficients of equations (1) and (2), float64 (steps,) each, in the order the steps are taken.

    Attributes:
        timesteps: t of each step as the network knows it, int64 (steps,).
        x0_from_xt, x0_from_output: a and b.
        rows: c to h and sigma.
        clip: whether x_0 is clipped: True, False, or "dynamic" thresholding.
    """

    timesteps: np.ndarray
    x0_from_xt: np.ndarray
    x0_from_output: np.ndarray
    rows: Rows
    clip: bool | str

    @property
    def num_rows(self) -> int:
        """Number of rows, each one network call; a sampler may take several a step."""
        return len(self.timesteps)

    @property
    def has_memory(self) -> bool:
        """Whether the state is x and a memory, 2 C channels, instead of x alone."""
        return self.rows.from_memory is not None

    @property
    def learned_variance(self) -> bool:
        """Whether a denoiser must say 2 C channels, of which the others are a variance."""
        return self.rows.log_variance_range is not None

    @property
    def fingerprint(self) -> tuple:
        """The same for tables of the same steps, and hashable."""
        values = [self.timesteps, self.x0_from_xt, self.x0_from_output, *vars(self.rows).values()]
        return self.clip, *(None if value is None else np.asarray(value).tobytes() for value in values)

    def take(self, order: np.ndarray) -> "StepTable":
        """The table with its rows in another order, perhaps some of them several times."""

        def taken(value):
            if isinstance(value, tuple):
                return tuple(column[order] for column in value)
            return None if value is None else value[order]

        rows = Rows(**{field.name: taken(getattr(self.rows, field.name)) for field in dataclasses.fields(Rows)})
        columns = (column[order] for column in (self.timesteps, self.x0_from_xt, self.x0_from_output))
        return StepTable(*columns, rows=rows, clip=self.clip)

    def step(self, state, output, index, z=None):
        """The state after a step, equations (1) and (2).

        Args:
            state: float32 (B, ..., C), or (B, ..., 2 C) with a memory.
            output: the denoiser's at x, (B, ..., C), or (B, ..., 2 C) with a learned variance.
            index: int32 scalar, which step.
            z: standard normal noise like x, None = none.
        """

        def at(column):
            return tf.gather(column.astype(np.float32), index)

        rows = self.rows
        output = tf.cast(output, tf.float32)
        x_t, memory = tf.split(state, 2, axis=-1) if self.has_memory else (state, None)
        std = at(rows.noise_std)
        if self.learned_variance:
            output, fraction = tf.split(output, 2, axis=-1)
            ends = (at(column) for column in rows.log_variance_range)
            std = std * tf.exp(0.5 * learned_log_variance(fraction, *ends))
        x_0 = _clipped(at(self.x0_from_xt) * x_t + at(self.x0_from_output) * output, self.clip)
        x_prev = at(rows.from_x0) * x_0 + at(rows.from_xt) * x_t
        if memory is not None:
            x_prev += at(rows.from_memory) * memory
        if z is not None:
            x_prev += std * z
        if memory is None:
            return x_prev
        memory = at(rows.memory_from_x0) * x_0 + at(rows.memory_from_xt) * x_t + at(rows.memory_from_memory) * memory
        return tf.concat([x_prev, memory], axis=-1)


def initial_noise(seeds, image_shape: Sequence[int]):
    """x_T for int32 seeds (B,): float32 (B, *image_shape)."""
    return noise.normal(seeds, noise.INITIAL_STREAM, 0, tuple(image_shape))


def initial_state(x, table: StepTable):
    """The sampler's state that begins at x (B, H, W, C): x, or x and a memory, (B, H, W, 2 C)."""
    return tf.concat([x, x], axis=-1) if table.has_memory else x


def picture_of(state, table: StepTable):
    """x (B, H, W, C) of a sampler's state."""
    return tf.split(state, 2, axis=-1)[0] if table.has_memory else state


def take_step(denoiser: Callable, table: StepTable, state, seeds, index):
    """One step: the state before it to the state after it.

    Args:
        denoiser: (x_t, t) -> output.
        table: the steps.
        state: float32 (B, H, W, C), x_t before the step, or (B, H, W, 2 C) with a memory; `initial_state` at step 0.
        seeds: int32 (B,), one an image; the noise of step i of image k is a function of (seeds[k], i).
        index: int32 scalar, which step.

    Returns:
        float32, like `state`.
    """
    x = picture_of(state, table)
    batch, *image_shape = x.shape
    t = tf.fill([batch], tf.gather(table.timesteps.astype(np.int32), index))
    noisy = np.any(table.rows.noise_std)
    z = noise.normal(seeds, noise.STEP_STREAM, index, tuple(image_shape)) if noisy else None
    return tf.ensure_shape(table.step(state, denoiser(x, t), index, z), state.shape)


def walk(denoiser: Callable, table: StepTable, state, seeds, start=0, stop=None, after_step: Callable | None = None):
    """Take the steps start .. stop - 1 in one `tf.while_loop`.

    Args:
        denoiser: (x_t, t) -> output.
        table: the steps.
        state: as in `take_step`.
        seeds: as in `take_step`.
        start: first step, int32 scalar or number.
        stop: one past the last step, None = all.
        after_step: (state, index) -> state, applied after each step; None = nothing.

    Returns:
        float32, the state after the last step taken; after all of them its picture is the image in [-1, 1].
    """

    def body(index, state):
        after = take_step(denoiser, table, state, seeds, index)
        return index + 1, after if after_step is None else after_step(after, index)

    stop = tf.convert_to_tensor(table.num_rows if stop is None else stop, tf.int32)
    start = tf.convert_to_tensor(start, tf.int32)
    return tf.while_loop(lambda index, _: index < stop, body, (start, state), parallel_iterations=1)[1]


def _clipped(x_0, clip):
    if clip == "dynamic":
        size = np.prod(x_0.shape[1:])
        beyond = int(size - np.ceil(_DYNAMIC_QUANTILE * (size - 1)))  # values at and above the quantile
        largest = tf.math.top_k(tf.reshape(tf.abs(x_0), [-1, size]), beyond).values[:, -1]
        limit = tf.reshape(tf.maximum(largest, 1.0), [-1] + [1] * (len(x_0.shape) - 1))
        return tf.clip_by_value(x_0, -limit, limit) / limit
    return tf.clip_by_value(x_0, -1.0, 1.0) if clip else x_0
