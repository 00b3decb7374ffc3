"""Normal noise that is the same, bit for bit, on a server, in a browser and on a phone.

    words   = Threefry-2x32, 20 rounds (Salmon et al. 2011), key (seed, stream), counter (element, step)
    normal  = +-Phi^-1((i + 0.5) / 2^16 + 0.5),  i = 15 bits of a word, the sign is one more bit

Logarithms, sines and square roots differ in their last bits between runtimes; additions, products, shifts and table
look-ups of integers do not, and all of them are builtin operators of TFLite. Two operators are missing there: a left
shift is replaced by a wrapping product with a power of two, and a logical right shift by an arithmetic one whose copies
of the sign bit are removed again.

The quantiles are rounded to multiples of 2^-12, so that the table takes 64 KB of int16 in every exported file instead
of 128; the rounding adds a variance of 5e-9, far below a grey level.
"""

import functools
import math
import statistics

import numpy as np
import tensorflow as tf

from kddpm.base.types import Tensor

INITIAL_STREAM = 0  # x_T
STEP_STREAM = 1  # the noise added by a sampler's steps
KNOWN_STREAM = 2  # the noise on the pixels that inpainting keeps
RETURN_STREAM = 3  # the noise that inpainting adds when it goes back
BOUND_STREAM = 4  # the noise in the x_t at which a bound is estimated
EVALUATION_STREAM = 5  # the noise, and the first t, at which `evaluate` computes the loss
TRAJECTORY_STREAM = 6  # the noise of whole trajectories, whose weights tighten a bound
PROBE_STREAM = 7  # the directions in which a divergence is measured
DATA_STREAM = 8  # the noise in the x_t at t = 0 where the probability-flow ODE begins

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_UNITS = 2**12  # units of the table per standard deviation


@functools.cache
def normal_table() -> np.ndarray:
    """Return the 2^15 quantiles Phi^-1((i + 0.5) / 2^16 + 0.5) in units of 2^-12, int16 (32768,), non-decreasing."""
    inverse = statistics.NormalDist().inv_cdf
    return np.array([round(inverse((i + 0.5) / 2**16 + 0.5) * _UNITS) for i in range(2**15)], np.int16)


def threefry2x32(key: tuple, counter: tuple) -> tuple:
    """Return two words of random bits for each counter.

    Args:
        key: two int32 tensors or numbers that broadcast against each other.
        counter: two int32 tensors or numbers that broadcast against the key.

    Returns:
        Two int32 tensors of the broadcast shape; reinterpreted as uint32 they are the published words.

    Reference:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; known answers: the Random123 distribution.
    """
    k0, k1 = (tf.convert_to_tensor(k, tf.int32) for k in key)
    schedule = (k0, k1, tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(k0, k1), _PARITY))
    x0, x1 = counter[0] + k0, counter[1] + k1
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = tf.bitwise.bitwise_xor(_rotate_left(x1, rotation), x0)
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + (schedule[(group + 2) % 3] + (group + 1))
    return x0, x1


def normal(seeds: Tensor, stream: int, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise, in which row k depends only on seed k.

    Args:
        seeds: int32 (B,), one a picture.
        stream: one of the streams above, or any other number for independent noise.
        step: int32 scalar; together with the element's index it is the counter.
        shape: static shape of one picture, without the batch.

    Returns:
        float32 (B, *shape).
    """
    size = math.prod(shape)
    quarter = -(-size // 4)  # one call gives two words of 32 bits, and a normal uses 16
    element = tf.range(quarter, dtype=tf.int32)[tf.newaxis, :]
    words = tf.concat(threefry2x32((seeds[:, tf.newaxis], stream), (element, step)), axis=1)
    halves = tf.bitwise.right_shift(tf.concat([words, words * 2**16], axis=1), 16)
    sign = tf.bitwise.right_shift(halves, 31)  # 0 or -1
    magnitude = tf.cast(tf.gather(normal_table(), tf.bitwise.bitwise_xor(halves, sign)), tf.int32)
    signed = tf.bitwise.bitwise_xor(magnitude, sign) - sign
    return tf.reshape(tf.cast(signed, tf.float32)[:, :size], (-1, *shape)) * (1 / _UNITS)


def _rotate_left(x, bits: int):
    # x 2^bits plus a logical right shift; the sign correction of the shift has the same factor 2^bits.
    shifted = tf.bitwise.right_shift(x, 32 - bits)
    return shifted + (x - tf.bitwise.right_shift(x, 31)) * 2**bits
