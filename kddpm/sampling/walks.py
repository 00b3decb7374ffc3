"""The loop of all samplers: it runs the steps of a `StepTable` inside the graph.

Equations (1) and (2) are those of `kddpm.sampling.step_table`. `predict` is any function (x_t, t) -> output on tensors
(B, H, W, C) and int32 (B,); nothing here depends on a model or a file.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kddpm.base.types import Tensor
from kddpm.sampling import noise
from kddpm.sampling.step_table import StepTable
from kddpm.theory.process import learned_log_variance

_DYNAMIC_QUANTILE = 0.995  # Saharia et al. 2022, section 2.3


def initial_noise(seeds: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Return x_T for int32 seeds (B,), float32 (B, *image_shape)."""
    return noise.normal(seeds, noise.INITIAL_STREAM, 0, tuple(image_shape))


def initial_state(x: Tensor, table: StepTable) -> Tensor:
    """Return the sampler's state that starts at x (B, H, W, C): x, or x and a memory, (B, H, W, 2 C)."""
    return tf.concat([x, x], axis=-1) if table.has_memory else x


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last C channels of (..., 2 C).

    Slices, because LiteRT 2.3.0's GPU delegate fuses operators around a SPLIT, and around a concatenation of a tensor
    with itself, into wrong values.
    """
    channels = x.shape[-1] // 2
    return x[..., :channels], x[..., channels:]


def picture_of(state: Tensor, table: StepTable) -> Tensor:
    """Return x (B, H, W, C) of a sampler's state."""
    return halves(state)[0] if table.has_memory else state


def take_step(predict: Callable, table: StepTable, state: Tensor, seeds: Tensor, index: Tensor) -> Tensor:
    """Take one step and return the state after it.

    Args:
        predict: (x_t, t) -> output of the network.
        table: the steps.
        state: float32 (B, H, W, C), x_t before the step, or (B, H, W, 2 C) with a memory; `initial_state` at step 0.
        seeds: int32 (B,), one an image; the noise of step i of image k is a function of (seeds[k], i).
        index: int32 scalar or (1,), the row of the table.

    Returns:
        float32, the shape of `state`.
    """
    shape = picture_of(state, table).shape[1:]
    z = noise.normal(seeds, noise.STEP_STREAM, index, tuple(shape)) if table.is_noisy else None
    return take_step_with(predict, table, state, index, z)


def take_step_with(predict: Callable, table: StepTable, state: Tensor, index: Tensor | int, z: Tensor = None) -> Tensor:
    """Take one step with given noise and return the state after it.

    Args:
        predict: as in `take_step`.
        table: the steps.
        state: as in `take_step`.
        index: int32 scalar or (1,), the row of the table; GPUs take no scalars.
        z: standard normal noise of the shape of x, None = none.

    Returns:
        float32, the shape of `state`.
    """
    x = picture_of(state, table)
    t = tf.gather(table.timesteps.astype(np.int32), index)
    t = tf.tile(t, x.shape[:1]) if t.shape.rank else tf.fill(x.shape[:1], t)
    return tf.ensure_shape(next_state(table, state, predict(x, t), index, z), state.shape)


def predicted_x0(predict: Callable, table: StepTable, state: Tensor, index: Tensor) -> Tensor:
    """Return the x_0 that a step predicts from its state, equation (1), float32 (B, H, W, C).

    Args:
        predict: as in `take_step`.
        table: the steps.
        state: as in `take_step`.
        index: int32 scalar, the row of the table.
    """
    x = picture_of(state, table)
    output = predict(x, tf.fill(x.shape[:1], tf.gather(table.timesteps.astype(np.int32), index)))
    output = tf.cast(output, tf.float32)
    return _x_0(table, x, halves(output)[0] if table.learned_variance else output, index)


def walk(
    predict: Callable,
    table: StepTable,
    state: Tensor,
    seeds: Tensor,
    start: Tensor = 0,
    stop: Tensor = None,
    after_step: Callable | None = None,
) -> Tensor:
    """Take the steps start .. stop - 1 in one `tf.while_loop` and return the state after them.

    Args:
        predict: (x_t, t) -> output of the network.
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
        after = take_step(predict, table, state, seeds, index)
        return index + 1, after if after_step is None else after_step(after, index)

    stop = tf.convert_to_tensor(table.num_rows if stop is None else stop, tf.int32)
    start = tf.convert_to_tensor(start, tf.int32)
    return tf.while_loop(lambda index, _: index < stop, body, (start, state), parallel_iterations=1)[1]


def next_state(table: StepTable, state: Tensor, output: Tensor, index: Tensor, z: Tensor = None) -> Tensor:
    """Return the state after a step, equations (1) and (2), from the network's output.

    Args:
        table: the steps.
        state: float32 (B, ..., C), or (B, ..., 2 C) with a memory.
        output: the network's at x, (B, ..., C), or (B, ..., 2 C) with a learned variance.
        index: int32 scalar or (1,), the row of the table.
        z: standard normal noise of the shape of x, None = none.
    """

    def at(column):
        return _at(column, index)

    rows = table.rows
    output = tf.cast(output, tf.float32)
    x_t, memory = halves(state) if table.has_memory else (state, None)
    std = at(rows.noise_std)
    if rows.log_variance_range is not None:
        output, fraction = halves(output)
        ends = (at(column) for column in rows.log_variance_range)
        std = std * tf.exp(0.5 * learned_log_variance(fraction, *ends))
    x_0 = _x_0(table, x_t, output, index)
    x_prev = at(rows.from_x0) * x_0 + at(rows.from_xt) * x_t
    if memory is not None:
        x_prev += at(rows.from_memory) * memory
    if z is not None:
        x_prev += std * z
    if memory is None:
        return x_prev
    memory = at(rows.memory_from_x0) * x_0 + at(rows.memory_from_xt) * x_t + at(rows.memory_from_memory) * memory
    return tf.concat([x_prev, memory], axis=-1)


def _at(column, index):
    """Return the entry of a float64 column at a row of the table, float32."""
    return tf.gather(column.astype(np.float32), index)


def _x_0(table, x_t, output, index):
    """Return x_0 of equation (1), clipped as the table says."""
    return _clipped(_at(table.x0_from_xt, index) * x_t + _at(table.x0_from_output, index) * output, table.clip)


def _clipped(x_0, clip):
    """Return x_0, clipped to [-1, 1] or by dynamic thresholding, or as it is."""
    if clip == "dynamic":
        size = np.prod(x_0.shape[1:])
        beyond = int(size - np.ceil(_DYNAMIC_QUANTILE * (size - 1)))  # values at and above the quantile
        largest = tf.math.top_k(tf.reshape(tf.abs(x_0), [-1, size]), beyond).values[:, -1:]
        limit = tf.reshape(tf.maximum(largest, 1.0), [-1] + [1] * (len(x_0.shape) - 1))
        return tf.clip_by_value(x_0, -limit, limit) / limit
    return tf.clip_by_value(x_0, -1.0, 1.0) if clip else x_0
