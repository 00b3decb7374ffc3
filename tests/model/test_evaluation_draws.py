"""The draws of an evaluation belong to the image: its number is the same in batches of any size, from every source."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.image_samples import random_pixels
from helpers.networks import T
from helpers.small_models import SHAPE, Replica, as_dataset, evaluate, small, train

from kddpm.model import draws


def drawn(first, count, seed=0, num_timesteps=T):
    """t and noise of images first, first + 1, ..."""
    parts = draws.draw_evaluation(seed, tf.constant(first, tf.float32), np.zeros((count, *SHAPE), "f4"), num_timesteps)
    return [part.numpy() for part in parts]


def test_the_draws_of_an_image_are_those_of_its_number():
    whole = drawn(0, 64)
    for first, count in ((0, 1), (5, 7), (32, 32), (63, 1)):
        for part, of_all in zip(drawn(first, count), whole, strict=True):
            np.testing.assert_array_equal(part, of_all[first : first + count])
    assert all((a != b).any() for a, b in zip(drawn(0, 64, seed=1), whole, strict=True))


@pytest.mark.parametrize("jit_compile", [None, True])
def test_the_draws_are_the_same_bits_in_a_graph_and_under_xla(jit_compile):
    @tf.function(jit_compile=jit_compile, autograph=False)
    def of(seen, x_0):
        return draws.draw_evaluation(3, seen, x_0, 1000)

    for part, expected in zip(of(tf.constant(7.0), np.zeros((9, *SHAPE), "f4")), drawn(7, 9, 3, 1000), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_replicas_have_the_draws_of_their_images(monkeypatch):
    whole = drawn(10, 16)
    for replica in range(2):
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda replica=replica: Replica(replica))
        for part, of_all in zip(drawn(10, 8), whole, strict=True):
            np.testing.assert_array_equal(part, of_all[8 * replica : 8 * replica + 8])


@pytest.mark.parametrize("num_timesteps", [1, 2, 10, 1000, 1024, 2**31 - 1])
def test_t_follows_the_golden_ratio_from_a_start_that_the_seed_chooses(num_timesteps):
    t = drawn(0, 2000, num_timesteps=num_timesteps)[0]
    assert t.dtype == np.int32 and t.min() >= 0 and t.max() < num_timesteps
    places = drawn(0, 2000, num_timesteps=2**31 - 1)[0] / (2**31 - 1)
    steps = np.diff(places) % 1
    np.testing.assert_allclose(steps, (np.sqrt(5) - 1) / 2, atol=3e-9)
    assert (abs(t - np.floor(places * num_timesteps)) <= 1).all()


@pytest.mark.parametrize("size", [10, 100, 1000])
def test_images_in_a_row_cover_every_t_evenly(size):
    """Of 4 T images each t has 4, up to 2 more or fewer; independent draws would give 0 to 12."""
    for first in (0, 17, 12_345):
        times = np.bincount(drawn(first, 4 * size, num_timesteps=size)[0], minlength=size)
        assert 2 <= times.min() and times.max() <= 6


def test_each_t_is_equally_likely_over_seeds():
    """A bound of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n = 4000
    of = tf.function(lambda seed: draws.draw_evaluation(seed, tf.constant(0.0), tf.zeros((2, *SHAPE)), 5)[0])
    t = np.array([of(tf.constant(seed)) for seed in range(-n // 2, n // 2)])
    for column in t.T:
        assert (abs(np.bincount(column, minlength=5) / n - 0.2) < 5 * np.sqrt(0.16 / n)).all()


def test_the_noise_is_standard_normal_and_no_two_images_share_it():
    """Bounds of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    eps = np.stack([drawn(0, 4000, seed)[1] for seed in (0, 1)])
    n = eps.size
    assert abs(eps.mean()) < 5 / np.sqrt(n) and abs(eps.var() - 1) < 5 * np.sqrt(2 / n)
    for a, b in ((eps[:, 1:], eps[:, :-1]), (eps[0], eps[1]), (eps[0, 1:], eps[1, :-1])):
        assert abs((a * b).mean()) < 5 / np.sqrt(a.size)


# The number that is reported.


@pytest.fixture(scope="module")
def model():
    """A model whose loss depends on t and on the label, with a weight that does, too."""
    model = small(network={"num_classes": 3}, weighting="vlb", seed=4)
    rng = np.random.default_rng(1)
    model.ema_network.set_weights([w + rng.normal(0, 0.3, w.shape) for w in model.ema_network.get_weights()])
    return model


X, Y = random_pixels(53, *SHAPE), np.arange(53) % 3


class Batches(keras.utils.PyDataset):
    """Batches of the images of several sizes."""

    ends = (0, 7, 8, 30, 53)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(*self.ends[index : index + 2])
        return X[rows], Y[rows]


@pytest.mark.parametrize(
    "by",
    [
        *(lambda m, size=size: evaluate(m, X, Y, size) for size in (1, 17, 32, 512)),
        lambda m: evaluate(m, as_dataset(X, Y), None, None),
        lambda m: evaluate(m, tf.data.Dataset.from_tensor_slices((X, Y)).batch(20), None, None),
        lambda m: evaluate(m, Batches(), None, None),
        lambda m: evaluate(m, (Batches()[k] for k in range(4)), None, None),
        lambda m: m.test_on_batch(X, Y),
    ],
)
def test_the_same_images_give_the_same_number_by_every_door(model, by):
    np.testing.assert_allclose(by(model), evaluate(model, X, Y, 53), rtol=2e-6)


def test_validation_gives_the_number_of_evaluate():
    model = small(keras.optimizers.SGD(0.0), {"num_classes": 3}, weighting="vlb")
    expected = evaluate(model, X, Y, 53)
    history = train(model, X[:8], Y[:8], epochs=2, validation_data=(X, Y), validation_batch_size=9)
    np.testing.assert_allclose(history["val_loss"], expected, rtol=2e-6)
    np.testing.assert_allclose(model.test_on_batch(X, Y), expected, rtol=2e-6)  # the losses of `fit` are not in it


def test_every_image_counts_once_and_has_its_own_t(model):
    """The mean over images that are evaluated one by one with the draws of their places."""
    losses = []
    for k, (image, label) in enumerate(zip(X, Y, strict=True)):
        t, eps = drawn(k, 1, seed=4)
        x_0 = tf.constant(image[np.newaxis] / 127.5 - 1, tf.float32)
        losses.append(model._image_losses(model.ema_network, x_0, t, eps, tf.constant([label])).numpy()[0])
    np.testing.assert_allclose(evaluate(model, X, Y, 8), np.mean(losses, dtype=float), rtol=1e-5)
