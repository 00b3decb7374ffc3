"""The random draws of a step of training or evaluation, a function of (seed, purpose, step) without saved state.

Everything is drawn for the global batch and sliced by replica, so that n replicas draw the same as one device.
"""

from typing import NamedTuple

import tensorflow as tf

from kddpm.base.types import Tensor
from kddpm.distribution import replicas

TRAINING, EVALUATION = 0, 1  # purposes


class Draws(NamedTuple):
    """The draws of a batch of B images."""

    t: tf.Tensor  # int32 (B,), indices into the schedule
    weight: tf.Tensor  # float32 (B,), weight of each loss: 1 / (T p(t))
    noise: tf.Tensor  # float32 (B, H, W, C)
    label: tf.Tensor | None  # int32 (B,), some replaced by "no class"
    dropout_seed: tf.Tensor  # int32 (B,)


def draw(
    seed: int,
    purpose: int,
    index: Tensor,
    x_0: tf.Tensor,
    label: tf.Tensor | None,
    num_timesteps: int,
    *,
    shares: tf.Tensor | None = None,
    label_dropout: float = 0.0,
    no_class: int | None = None,
) -> Draws:
    """Return the draws of one step.

    Args:
        seed: int32, the seed of the run.
        purpose: `TRAINING` or `EVALUATION`.
        index: int64 scalar, the number of the step.
        x_0: images (B, H, W, C) of this replica.
        label: classes (B,), or None.
        num_timesteps: T.
        shares: float32 (T,), unnormalised probability of each t; None = uniform.
        label_dropout: fraction of the labels that are replaced.
        no_class: the label that replaces them.
    """
    fold_in = tf.random.experimental.stateless_fold_in
    key = fold_in(tf.constant([seed, purpose], tf.int32), index)
    size = tf.shape(x_0)[0] if x_0.shape[0] is None else x_0.shape[0]
    first, batch = replicas.place_of(size)

    def mine(drawn):
        """Return this replica's slice; its size is static if the batch's is, as TPUs require."""
        return drawn if batch is size else tf.slice(drawn, [first, *[0] * (drawn.ndim - 1)], [size, *drawn.shape[1:]])

    if shares is None:
        t = tf.random.stateless_uniform([batch], fold_in(key, 0), 0, num_timesteps, dtype=tf.int32)
        weight = tf.ones([batch])
    else:
        uniform = tf.random.stateless_uniform([batch], fold_in(key, 0))
        ends = tf.cumsum(shares)
        t = tf.searchsorted(ends[:-1], uniform * ends[-1], side="right", out_type=tf.int32)
        weight = 1 / (num_timesteps * tf.gather(shares, t))
    noise = tf.random.stateless_normal([batch, *x_0.shape[1:]], fold_in(key, 1))
    dropout_seed = tf.random.stateless_uniform([batch], fold_in(key, 2), 0, 2**31 - 1, dtype=tf.int32)
    if label_dropout:
        dropped = mine(tf.random.stateless_uniform([batch], fold_in(key, 3))) < label_dropout
        label = tf.where(dropped, no_class, label)
    return Draws(mine(t), mine(weight), mine(noise), label, mine(dropout_seed))
