"""In which order images are trained on."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from kddpm import data
from kddpm.base.errors import InputError


def numbered(count, shape=(2, 3, 1)):
    """Images that hold their own number, and labels 100 more, so that a batch tells what is in it."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, *shape)).copy()
    return data.ImageData(images, np.arange(count, dtype=np.int32) + 100, (), "numbered", "")


def numbers(dataset):
    return [batch[:, 0, 0, 0].tolist() for batch in dataset.as_numpy_iterator()]


def test_an_epoch_shows_every_image_once():
    images = numbered(10)
    flat = list(
        itertools.chain(*numbers(data.batches(images, 4, seed=3, stop=5)))
    )  # 20 positions: two epochs; batch 2 spans both
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] and flat[:10] != list(range(10))


@pytest.mark.parametrize("count, batch_size", [(1, 1), (2, 2), (7, 7), (12, 5), (64, 3)])
def test_batches_resume_at_any_step(count, batch_size):
    images = numbered(count)
    whole = numbers(data.batches(images, batch_size, seed=5, stop=9))
    assert len(whole) == 9
    for start in (0, 1, 4, 9):
        assert numbers(data.batches(images, batch_size, seed=5, start=start, stop=9)) == whole[start:]
    assert numbers(data.batches(images, batch_size, seed=5, start=2).take(3)) == whole[2:5]


def test_positions_do_not_depend_on_the_batch_size():
    images = numbered(24, (2, 3, 1))
    images.images[:, :, 0] += 100
    flat = [
        np.concatenate(list(data.batches(images, size, seed=2, stop=24 // size, horizontal_flip=True)))
        for size in (3, 8, 12)
    ]
    assert np.array_equal(flat[0], flat[1]) and np.array_equal(flat[0], flat[2])


def test_late_steps_are_computed_in_int64():
    images = numbered(12)
    start = 2**40 + 3  # 5 * start needs 43 bits
    position = start * 5
    first = -(-position // 12) * 12 - position  # where the next epoch begins within the batches
    flat = list(itertools.chain(*numbers(data.batches(images, 5, seed=1, start=start, stop=start + 9))))
    assert sorted(flat[first : first + 12]) == sorted(flat[first + 12 : first + 24]) == list(range(12))
    assert flat[first : first + 12] != flat[first + 12 : first + 24]


def test_orders_of_epochs_and_seeds_are_all_different():
    # The counters 0, 1, 2, ... used as keys of the permutation give 256 orders in all, the first of them unshuffled.
    images = numbered(64)
    orders = [tuple(batch) for batch in numbers(data.batches(images, 64, seed=0, stop=400))]
    orders += [tuple(numbers(data.batches(images, 64, seed=seed, stop=1))[0]) for seed in (1, 2, -1, 2**40)]
    assert len(set(orders)) == 404


def test_order_is_uniform():
    # 600 epochs of 10 images: each image falls on each place 60 times on average. The statistic has 81 degrees of
    # freedom; a fair shuffle exceeds 145 with probability 1.5e-5 (the seed is fixed: never, once it has passed).
    # Counters as keys, for which it is about 80 * 600 / 256, give 140 to 190 or more; 4,000 for no shuffle at all.
    table = np.zeros((10, 10))
    for order in numbers(data.batches(numbered(10), 10, seed=11, stop=600)):
        table[np.arange(10), order] += 1
    assert ((table - 60) ** 2 / 60).sum() < 145


def test_flips_are_fair_independent_coins():
    images = numbered(50, (1, 2, 1))
    images.images[:, :, 1] += 100  # left < right until it is mirrored
    labelled = data.batches(images, 50, seed=4, stop=40, horizontal_flip=True, with_labels=True)
    flips = np.zeros((40, 50), bool)
    for epoch, (batch, labels) in enumerate(labelled.as_numpy_iterator()):
        left, right = batch[:, 0, 0, 0].astype(int), batch[:, 0, 1, 0].astype(int)
        assert np.array_equal(np.minimum(left, right) + 100, labels) and (np.abs(right - left) == 100).all()
        flips[epoch, labels - 100] = left > right
    # 2,000 coins: the share of heads leaves 0.5 +- 0.05 with probability 8e-6.
    assert abs(flips.mean() - 0.5) < 0.05
    assert len({tuple(row) for row in flips}) == 40
    other = next(data.batches(images, 50, seed=5, horizontal_flip=True).as_numpy_iterator())
    plain = next(data.batches(images, 50, seed=5).as_numpy_iterator())
    flipped = (other != plain).any((1, 2, 3))
    assert flipped.any() and not flipped.all() and np.array_equal(other[flipped], plain[flipped][:, :, ::-1])


def test_labels_follow_their_images():
    dataset = data.batches(numbered(9), 4, seed=0, stop=7, with_labels=True)
    assert dataset.element_spec == (tf.TensorSpec((4, 2, 3, 1), tf.uint8), tf.TensorSpec((4,), tf.int32))
    for images, labels in dataset.as_numpy_iterator():
        assert np.array_equal(images[:, 0, 0, 0] + 100, labels)


def test_shapes_and_options():
    dataset = data.batches(numbered(9), 4, seed=0)
    assert dataset.element_spec == tf.TensorSpec((4, 2, 3, 1), tf.uint8)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert data.batches(numbered(9), 4, seed=0, start=3, stop=10).cardinality() == 7
    policy = dataset.options().experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA
    assert not dataset.options().autotune.enabled  # whoever frees its iterator would wait for the thread that tunes


@pytest.mark.parametrize(
    "kwargs, text",
    [
        ({"batch_size": 13}, "`batch_size` must be at most the number of images. Received: 13, and 12 images"),
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0"),
        ({"batch_size": 2, "start": -1}, "`start` must lie in 0 .. `stop`. Received: start=-1, stop=None"),
        ({"batch_size": 2, "start": 5, "stop": 4}, "Received: start=5, stop=4"),
        ({"batch_size": 2, "seed": 2**63}, "`seed` must fit 64 bits"),
        ({"batch_size": 2, "with_labels": True}, "`with_labels` needs labels. Received: numbered, which has none"),
    ],
)
def test_impossible_batches(kwargs, text):
    images = dataclasses.replace(numbered(12), labels=None)
    with pytest.raises(InputError, match=text):
        data.batches(images, **{"seed": 0, **kwargs})
