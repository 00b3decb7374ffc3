"""The random draws of training, a function of (seed, step), and of evaluation, a function of (seed, image).

Nothing is saved. A step of training draws for the global batch and slices by replica, so that n replicas draw the same
as one device. An evaluation numbers its images: image k has the same draws in batches of any size.
"""

from typing import NamedTuple

import tensorflow as tf

from kddpm.base.types import Tensor
from kddpm.distribution import replicas
from kddpm.sampling import noise as normal_noise

_PLACES = 2**32  # among which a draw that is spread evenly, or by shares, chooses
_GOLDEN = 0x9E3779B9 - 2**32  # 2^32 over the golden ratio, as int32


class Draws(NamedTuple):
    """The draws of a batch of B images."""

    t: tf.Tensor  # int32 (B,), indices into the schedule
    weight: tf.Tensor  # float32 (B,), weight of each loss: 1 / (T p(t)), or 1
    noise: tf.Tensor  # float32 (B, H, W, C)
    label: tf.Tensor | None  # int32 (B,), some replaced by "no class"
    dropout_seed: tf.Tensor  # int32 (B,)


def draw(
    seed: int,
    step: Tensor,
    x_0: tf.Tensor,
    label: tf.Tensor | None,
    num_timesteps: int,
    *,
    shares: tf.Tensor | None = None,
    undo_shares: bool = True,
    evenly: bool = False,
    label_dropout: float = 0.0,
    no_class: int | None = None,
) -> Draws:
    """Return the draws of one step of training.

    Args:
        seed: int32, the seed of the run.
        step: int64 scalar, the number of the step.
        x_0: images (B, H, W, C) of this replica.
        label: classes (B,), or None.
        num_timesteps: T.
        shares: float32 (T,), the probability of each t up to a common factor; None = uniform, to T / 2^32.
        undo_shares: whether the weights are 1 / (T p(t)), so that the mean loss is that of a uniform t; else 1.
        evenly: whether the t of the global batch are spread evenly; each alone is distributed as without.
        label_dropout: fraction of the labels that are replaced, to 2^-23.
        no_class: the label that replaces them.
    """
    fold_in = tf.random.experimental.stateless_fold_in
    key = fold_in(tf.constant([seed, 0], tf.int32), step)
    size = _rows(x_0)
    first, batch = replicas.place_of(size)

    def mine(drawn):
        """Return this replica's slice; its size is static if the batch's is, as TPUs require."""
        return drawn if batch is size else tf.slice(drawn, [first, *[0] * (drawn.ndim - 1)], [size, *drawn.shape[1:]])

    if shares is None:
        t, weight = _uniform(fold_in(key, 0), batch, num_timesteps, evenly), tf.ones([batch])
    else:
        t, weight = at_places(_places(fold_in(key, 0), batch, evenly), share_ends(shares))
        weight = weight if undo_shares else tf.ones([batch])
    noise = tf.random.stateless_normal([batch, *x_0.shape[1:]], fold_in(key, 1))
    dropout_seed = tf.random.stateless_uniform([batch], fold_in(key, 2), 0, 2**31 - 1, dtype=tf.int32)
    if label_dropout:
        dropped = mine(tf.random.stateless_uniform([batch], fold_in(key, 3))) < label_dropout
        label = tf.where(dropped, no_class, label)
    return Draws(mine(t), mine(weight), mine(noise), label, mine(dropout_seed))


def draw_evaluation(
    seed: int, seen: Tensor, x_0: tf.Tensor, num_timesteps: int, shares: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the draws of a batch of an evaluation, in integers, so that they are the same everywhere.

        t_k = floor(T frac(u + k / golden ratio)),  u uniform

    spreads the t of consecutive images, whatever their number, far more evenly than independent draws. The mean of
    "simple" losses of 512 digits at T = 1000 is off by 1.1 % (rms over 200 seeds) instead of 3.9 %; that of "vlb", most
    of which is the term at t = 0, by 84 % instead of 107 %: `bits_per_dim` is the way to measure the bound.

    Args:
        seed: int32, the seed of the run.
        seen: scalar, how many images came in earlier batches of all replicas; as float32, exact up to 2^24.
        x_0: images (B, H, W, C) of this replica.
        num_timesteps: T.
        shares: as in `draw`; t_k is then where this place lies among the shares.

    Returns:
        t, int32 (B,), and the noise, float32 (B, H, W, C).
    """
    size = _rows(x_0)
    k = tf.cast(seen, tf.int32) + replicas.place_of(size)[0] + tf.range(size)
    stream = normal_noise.EVALUATION_STREAM
    start, _ = normal_noise.threefry2x32((seed, stream), (-1, 0))  # -1: no element of an image
    place = tf.cast(start + k * _GOLDEN, tf.int64) + 2**31  # of 2^32; the sum of int32 wraps
    t = _of_places(place, num_timesteps) if shares is None else at_places(place, share_ends(shares))[0]
    return t, normal_noise.normal(k, stream, seed, tuple(x_0.shape[1:]))


def _rows(x_0):
    return tf.shape(x_0)[0] if x_0.shape[0] is None else x_0.shape[0]


def _uniform(key, batch, num_timesteps, evenly):
    """Return uniform t, int32 (batch,)."""
    if not evenly:
        return tf.random.stateless_uniform([batch], key, 0, num_timesteps, dtype=tf.int32)
    return _of_places(_places(key, batch, evenly), num_timesteps)


def _of_places(places, num_timesteps):
    """Return the t of places among 2^32, int32 like the places."""
    return tf.cast(tf.bitwise.right_shift(places * num_timesteps, 32), tf.int32)


def _places(key, batch, evenly):
    """Return a uniform place among 2^32 for each of a batch, int64 (batch,).

    They are independent, or spread evenly: frac(u + i / batch) with one u for all, the low-discrepancy sampler of
    Kingma et al. 2021.
    """
    places = tf.random.stateless_uniform([1 if evenly else batch], key, 0, _PLACES, dtype=tf.int64)
    if not evenly:
        return places
    steps = tf.range(tf.cast(batch, tf.int64)) * _PLACES // tf.cast(batch, tf.int64)
    return tf.bitwise.bitwise_and(places + steps, _PLACES - 1)


def share_ends(shares: tf.Tensor) -> tf.Tensor:
    """Return the end of each t's interval of the integers 0 .. 2^32 - 1, int64 (T,); each holds at least 3 of them.

    Shares, float32 (T,), matter up to a common factor. Floats in [0, 1) would miss those of a rare t by much.
    """
    counts = tf.maximum(tf.cast(tf.round(shares / tf.reduce_sum(shares) * 2**30), tf.int32), 1)
    ends = tf.cast(tf.cumsum(counts), tf.int64)
    return ends * _PLACES // ends[-1]


def at_places(places: tf.Tensor, ends: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the t, int32 (B,), in whose intervals the places lie, and 1 / (T p(t)) with p(t) from the intervals."""
    t = tf.searchsorted(ends, places, side="right", out_type=tf.int32)
    sizes = ends - tf.pad(ends[:-1], [[1, 0]])
    return t, _PLACES / ends.shape[0] / tf.cast(tf.gather(sizes, t), tf.float32)
