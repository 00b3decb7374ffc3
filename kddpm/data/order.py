"""Training batches of a data set, in an order that is a function of (seed, step).

For N images, batch size B, step k and index j in the batch: position p = k B + j belongs to epoch e = p // N, and its
image is pi_e(p % N), where pi_e is a permutation of 0..N-1 made from (seed, e). So an epoch shows every image once, the
next epoch fills up a batch in which one ends, and a run that starts at step k needs no replay.
"""

import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.data.sources import ImageData

_SHUFFLE_ROUNDS = 8


def batches(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    horizontal_flip: bool = False,
    with_labels: bool = False,
) -> tf.data.Dataset:
    """Return the batches of steps start..stop-1; that of step k depends only on the data, `batch_size`, `seed` and k.

    Args:
        data: the images.
        batch_size: B, at most the number of images.
        seed: of the order and the flips; any int64.
        start: the first step.
        stop: the step to stop before; None = endless.
        horizontal_flip: mirror half of the images left to right, each by a coin that is a function of (seed, position).
        with_labels: return pairs of images and labels.

    Returns:
        A dataset of uint8 (B, H, W, C), or of pairs of those with int32 (B,).

    Raises:
        InputError: a value out of range, or labels requested of data without them.
    """
    count = len(data.images)
    if batch_size < 1:
        raise InputError("batch_size", "must be at least 1", batch_size)
    if batch_size > count:
        raise InputError("batch_size", "must be at most the number of images", f"{batch_size}, and {count} images")
    if start < 0 or (stop is not None and stop < start):
        raise InputError("start", "must lie in 0 .. `stop`", f"start={start}, stop={stop}")
    if not -(2**63) <= seed < 2**63:
        raise InputError("seed", "must fit 64 bits, with sign", seed)
    if with_labels and data.labels is None:
        raise InputError("with_labels", "needs labels", f"{data.source}, which has none")

    def gather(indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        images = np.asarray(data.images[indices])  # a copy
        images[mirrored] = images[mirrored, :, ::-1]
        return images

    @tf.autograph.experimental.do_not_convert  # it has no loops or branches, and a conversion takes longer than a trace
    def batch_of_step(step: tf.Tensor):
        positions = step * tf.constant(batch_size, tf.int64) + tf.range(batch_size, dtype=tf.int64)
        indices = _shuffled(positions, count, seed)
        mirrored = _coins(positions, seed) if horizontal_flip else tf.zeros(batch_size, tf.bool)
        # The array stays outside the graph, so that it is not copied and a memory map is read row by row. NumPy mirrors
        # uint8 images faster than TensorFlow: eight times at 256x256x3.
        images = tf.numpy_function(gather, [indices, mirrored], tf.uint8)
        images = tf.ensure_shape(images, (batch_size, *data.images.shape[1:]))
        if not with_labels:
            return images
        return images, tf.gather(tf.constant(data.labels, tf.int32), indices)

    # The counter has infinite cardinality; a long range would look like one long epoch.
    steps = tf.data.Dataset.counter(start) if stop is None else tf.data.Dataset.range(start, stop)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.deterministic = True
    # Else whoever frees an old iterator, as the end of a run does, may wait a minute for the thread that tunes it.
    options.autotune.enabled = False
    dataset = steps.map(batch_of_step, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _shuffled(positions: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Return pi_e(p % N) for the int64 positions p, which touch at most two epochs e."""
    epochs = positions // count
    # The permutation mixes its key so little that counters as keys give only 256 orders, and small counters only
    # 0, 1, 2, ...: so every epoch has a key of random words. The public `index_shuffle` takes one key a call and fixes
    # 4 rounds; but a batch may touch two epochs, and 8 rounds are needed to separate neighbours.
    keys = tf.stack([_key(seed, epochs[0]), _key(seed, epochs[0] + 1)])
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % count,
        seed=tf.gather(keys, epochs - epochs[0]),
        max_index=tf.constant(count - 1, tf.int64),
        rounds=_SHUFFLE_ROUNDS,
    )


def _key(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.stateless_uniform([3], seeds, minval=None, maxval=None, dtype=tf.uint32)


def _coins(positions: tf.Tensor, seed: int) -> tf.Tensor:
    """Return a random fair bool for each of the consecutive positions."""
    key = tf.random.stateless_uniform([1], tf.constant([seed, -1], tf.int64), minval=None, maxval=None, dtype=tf.uint64)
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[4 * positions.shape[0]],  # Philox gives four words a counter; the counter is the position
        key=key,
        counter=tf.stack([tf.cast(positions[0], tf.uint64), tf.constant(0, tf.uint64)]),
        alg=1,
        dtype=tf.int32,
    )
    return words[::4] >= 0
