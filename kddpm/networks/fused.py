"""Normalisation, SiLU and dropout as one operation for TensorFlow on a CPU, with a gradient of its own.

TensorFlow computes a chain of elementwise operators one after the other, each a pass over the feature map; together
they take as long as the convolutions. Here XLA compiles the chain into two or three passes, the convolutions stay
oneDNN's, and what is kept for the gradient is the input and numbers of (B, C). The gradient is written out, because
XLA is slow at its sums over pixels: as products with a constant they are fast.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from kddpm.base.types import Shape, Tensor

_allowed = contextvars.ContextVar("fused_allowed", default=False)


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Let layers that are called inside the context use the operation of this module, where it is the fastest form."""
    token = _allowed.set(_runs_on_cpu())
    try:
        yield
    finally:
        _allowed.reset(token)


def is_allowed(x: Tensor) -> bool:
    """Return whether to use it now, for a feature map x (B, H, W, C) of known height and width."""
    return _allowed.get() and None not in x.shape[1:]


def _runs_on_cpu():
    """Return whether TensorFlow has a CPU alone: where there is an accelerator nothing was measured."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def normalized(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    groups: int,
    epsilon: float,
    *,
    activate: bool = False,
    shift: Tensor = None,
    kept_of_65536: int = 2**16,
    seed: Tensor = None,
) -> Tensor:
    """Return dropout(SiLU(group_norm(x + shift))), in the dtype of x.

    With the means m and deviations 1/r of the groups (Wu & He 2018),

        (1)  h = (x + shift - m) r,  y = h scale + offset,  out = SiLU(y) mask / kept

    and with g the gradient by y and <.> the mean over a group, the gradients are

        (2)  by x: r (g scale - <g scale> - h <g scale h>)
        (3)  by shift: the sum of (2) over the pixels, over which h sums to r times (sum of x + shift, less m)
        (4)  by scale: the sum of g h over images and pixels; by offset: that of g

    Args:
        x: (B, H, W, C).
        scale: float32 (C,).
        offset: float32 (C,).
        groups: number of groups, a divisor of C.
        epsilon: added to the variance.
        activate: whether SiLU follows.
        shift: (B, C), or None.
        kept_of_65536: elements that dropout keeps, of 2^16.
        seed: int32 (B,), of the masks of `layers.Dropout`; needed where elements are dropped.
    """
    import tensorflow as tf

    rows, height, width, channels = x.shape
    if shift is None:
        shift = tf.zeros([tf.shape(x)[0], channels])
    if seed is None:
        if kept_of_65536 < 2**16:
            raise ValueError("seed is needed where elements are dropped")
        seed = tf.zeros([tf.shape(x)[0]], tf.int32)
    forward, backward = _compiled(rows, height, width, channels, groups, epsilon, activate, kept_of_65536)

    @tf.custom_gradient
    def operation(x, scale, offset, shift):
        y, *kept = forward(x, scale, offset, shift, seed)

        def gradients(gradient):
            by_x, by_scale, by_offset, by_shift = backward(x, scale, offset, shift, seed, gradient, *kept)
            # Reshaped here: TensorFlow's Grappler takes the gradient of a bias from any result of the operation that
            # gives the gradient of a convolution, which would be that by `shift` in one trace and by x in another.
            return by_x, by_scale, by_offset, tf.reshape(by_shift, tf.shape(shift))

        return y, gradients

    return operation(x, tf.convert_to_tensor(scale), tf.convert_to_tensor(offset), tf.cast(shift, tf.float32))


@functools.lru_cache(maxsize=256)  # a process may see many sizes of batches
def _compiled(rows, height, width, channels, groups, epsilon, activate, kept_of_65536):
    """Return the operation and its gradient, compiled, for one kind of feature map.

    A batch of unknown size, rows None, has its own: TensorFlow would use it for the others and forget their size.
    """
    import tensorflow as tf

    kept, pixels, shape = kept_of_65536 / 2**16, height * width, [-1, height, width, channels]

    def in_rows(x):
        return tf.cast(tf.reshape(x, [-1, pixels, channels]), tf.float32)

    def average(x):
        """Return the mean over the pixels, (B, C), as a product with ones."""
        return tf.matmul(tf.fill([tf.shape(x)[0], 1, pixels], 1 / pixels), x)[:, 0]

    def over_groups(means):
        """Return the mean over its group for each channel, (B, C)."""
        grouped = tf.reshape(means, [-1, groups, channels // groups])
        mean = tf.reduce_mean(grouped, axis=2, keepdims=True)
        return tf.reshape(tf.broadcast_to(mean, tf.shape(grouped)), [-1, channels])

    def dropped(x, seed):
        """Return float32 x (B, H, W, C) after dropout."""
        return x * tf.cast(dropout_mask(seed, ops.shape(x), kept_of_65536), tf.float32) / kept

    def forward(x, scale, offset, shift, seed):
        h = in_rows(x)
        own_mean = average(h) + shift
        mean = over_groups(own_mean)
        centred = h + (shift - mean)[:, tf.newaxis]
        variance = over_groups(tf.reduce_mean(tf.square(centred), axis=1))
        inverse = tf.math.rsqrt(variance + epsilon)
        y = centred * (inverse * scale)[:, tf.newaxis] + offset
        if activate:
            y *= tf.sigmoid(y)
        y = tf.reshape(y, shape)
        if kept < 1:
            y = dropped(y, seed)
        return tf.cast(y, x.dtype), own_mean, mean, inverse

    def backward(x, scale, offset, shift, seed, gradient, own_mean, mean, inverse):
        if kept < 1:
            gradient = dropped(tf.cast(gradient, tf.float32), seed)
        g = in_rows(gradient)
        h = (in_rows(x) + (shift - mean)[:, tf.newaxis]) * inverse[:, tf.newaxis]
        if activate:
            y = h * scale + offset
            sigmoid = tf.sigmoid(y)
            g *= sigmoid * (1 + y * (1 - sigmoid))
        mean_g, mean_gh = average(g), average(g * h)
        first, second = over_groups(mean_g * scale), over_groups(mean_gh * scale)
        by_x = inverse[:, tf.newaxis] * (g * scale - first[:, tf.newaxis] - h * second[:, tf.newaxis])  # (2)
        by_shift = pixels * inverse * (mean_g * scale - first - (own_mean - mean) * inverse * second)  # (3)
        by_scale, by_offset = (pixels * tf.reduce_sum(mean, axis=0) for mean in (mean_gh, mean_g))  # (4)
        return tf.cast(tf.reshape(by_x, shape), x.dtype), by_scale, by_offset, by_shift[:, tf.newaxis]

    return tuple(tf.function(f, jit_compile=True, autograph=False) for f in (forward, backward))


def dropout_mask(seed: Tensor, shape: Shape, kept_of_65536: int) -> Tensor:
    """Return which elements `layers.Dropout` keeps, bool of the shape (B, ...), from seeds int32 (B,)."""
    size = math.prod(shape[1:])
    places = np.arange(-(-size // 2), dtype=np.uint32) * _GOLDEN
    words = _hashed(ops.expand_dims(_hashed(ops.cast(seed, "uint32")), 1) + places)
    # Each half of a word decides on one element: low halves on the first half of the image, high ones on the rest.
    below = kept_of_65536 - 1
    lower, upper = (words & _LOW_HALF) <= np.uint32(below), words <= np.uint32(below << 16 | _LOW_HALF)
    return ops.reshape(ops.concatenate([lower, upper], axis=1)[:, :size], shape)


_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio: spreads neighbouring positions far apart
_LOW_HALF = np.uint32(2**16 - 1)


def _hashed(words):
    """Return a bijective hash of uint32 words; constants of hash-prospector (C. Wellons), least bias for two rounds."""
    words = (words ^ ops.right_shift(words, 16)) * np.uint32(0x21F0AAAD)
    words = (words ^ ops.right_shift(words, 15)) * np.uint32(0xD35A2D97)
    return words ^ ops.right_shift(words, 15)
