"""What a step draws: timesteps, noise, labels that are left out; and how importance sampling remembers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.image_samples import random_pixels
from helpers.networks import T
from helpers.small_models import SHAPE, Replica, drawn_by, evaluate, give_history, small, train

from kddpm.data import images
from kddpm.model import draws
from kddpm.theory import parametrization, timesteps


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
def test_draws_depend_on_seed_and_step_alone(timestep_sampling):
    x_0, y = np.zeros((64, *SHAPE), np.float32), np.arange(64) % 3

    def drawn(step=3, seed=5):
        model = small(network={"num_classes": 3}, seed=seed, label_dropout=0.5, timestep_sampling=timestep_sampling)
        t, _, eps, label, dropout_seed = drawn_by(model, step, x_0, y)
        return [part.tolist() for part in (t, eps, label, dropout_seed)]

    assert drawn() == drawn()
    for other in (drawn(step=4), drawn(seed=6)):
        assert all(a != b for a, b in zip(drawn(), other, strict=True))


def test_draws_are_uniform_timesteps_and_standard_normal_noise():
    """Bounds of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n = 20_000
    t, weight, eps, _, _ = drawn_by(small(), 0, np.zeros((n, *SHAPE), np.float32))
    shares = np.bincount(t, minlength=T) / n
    assert len(shares) == T and (abs(shares - 1 / T) < 5 * np.sqrt(1 / T / n)).all()
    np.testing.assert_array_equal(weight, 1)
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size)
    assert abs(eps.var() - 1) < 5 * np.sqrt(2 / eps.size)
    assert abs((eps[1:] * eps[:-1]).mean()) < 5 / np.sqrt(eps.size)


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_of_labels_that_is_dropped(rate, timestep_sampling):
    """A bound of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n = 20_000
    model = small(network={"num_classes": 3}, label_dropout=rate, timestep_sampling=timestep_sampling)
    if timestep_sampling == "importance":
        give_history(model)
    x_0, y = np.zeros((n, *SHAPE), np.float32), np.arange(n) % 3
    t, _, eps, label, _ = drawn_by(model, 0, x_0, y)
    dropped = label == 3  # "no class"
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(label[~dropped], y[~dropped])
    # Whether a label goes says nothing about the class, the timestep or the noise.
    for other in (y, t, eps.mean((1, 2, 3))):
        assert abs(np.corrcoef(dropped, other)[0, 1]) < 5 / np.sqrt(n)


def test_no_label_is_dropped_where_none_is_to_be():
    x_0, y = np.zeros((64, *SHAPE), np.float32), np.arange(64) % 3
    np.testing.assert_array_equal(drawn_by(small(network={"num_classes": 3}, label_dropout=0.0), 0, x_0, y)[3], y)
    assert drawn_by(small(label_dropout=0.5), 0, x_0)[3] is None


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
def test_replicas_share_the_draws_of_the_global_batch(make_model, monkeypatch, timestep_sampling):
    unet = {"dropout": 0.1, "num_classes": 3, "multipliers": (1,)}
    model = make_model(unet, timestep_sampling=timestep_sampling, label_dropout=0.5)
    if timestep_sampling == "importance":
        give_history(model)
    x_0, y = np.zeros((16, 8, 8, 1), np.float32), np.arange(16) % 3
    whole = drawn_by(model, 3, x_0, y)
    assert 0 < np.sum(whole[3] == 3) < 16
    for replica in range(2):
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda replica=replica: Replica(replica))
        mine = slice(8 * replica, 8 * replica + 8)
        for part, of_all in zip(drawn_by(model, 3, x_0[mine], y[mine]), whole, strict=True):
            np.testing.assert_array_equal(part, of_all[mine])
    assert len(set(whole[-1])) == 16  # seeds of dropout


def test_importance_sampling_draws_what_has_large_losses_and_weighs_it_less():
    """Bounds of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n, model = 20_000, small(timestep_sampling="importance")
    x_0 = np.zeros((n, *SHAPE), np.float32)
    t, weight, *_ = drawn_by(model, 0, x_0)
    np.testing.assert_allclose(weight, 1, rtol=1e-6)  # nothing has been seen
    assert (abs(np.bincount(t, minlength=T) / n - 1 / T) < 5 * np.sqrt(1 / T / n)).all()
    expected = give_history(model)
    t, weight, *_ = drawn_by(model, 0, x_0)
    shares = np.bincount(t, minlength=T) / n
    assert (abs(shares - expected) < 5 * np.sqrt(expected / n)).all()
    np.testing.assert_allclose(weight, 1 / (T * expected[t]), rtol=1e-5)
    # Whatever depends on t has the mean that it has under uniform draws.
    for values in (np.ones(T), np.arange(T), np.arange(T) % 2, np.exp(-np.arange(T))):
        sample = weight * values[t]
        assert abs(sample.mean() - values.mean()) < 5 * sample.std() / np.sqrt(n)


@pytest.mark.parametrize("scale", [1.0, 3.0, 1e-6, 1e6])
def test_shares_matter_up_to_a_factor(scale):
    def drawn(shares):
        return draws.draw(5, tf.constant(3, tf.int64), np.zeros((999, *SHAPE), np.float32), None, 4, shares=shares)

    shares = tf.constant([1.0, 2.0, 0.5, 4.0])
    for part, expected in zip(drawn(scale * shares)[:2], drawn(shares)[:2], strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-6)
    np.testing.assert_allclose(drawn(scale * shares).weight, 7.5 / 4 / tf.gather(shares, drawn(shares).t), rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [None, True])
@pytest.mark.parametrize(("size", "rarest"), [(10_000, 1e-7), (10_000, 0.0), (1000, 1e-9), (3, 1e-12), (1, 1.0)])
def test_a_rare_t_is_drawn_as_often_as_its_weight_says(size, rarest, jit_compile):
    """The integers that are drawn are counted, not sampled: the first and the last of each t give this t."""
    shares = np.random.default_rng(0).exponential(size=size).astype(np.float32)
    shares = shares / shares.sum() if size > 1 else shares
    shares[:: max(2, size // 2)] = rarest

    @tf.function(jit_compile=jit_compile, autograph=False)
    def intervals_and_draws(shares):
        ends = draws.share_ends(shares)
        starts = tf.concat([[0], ends[:-1]], 0)
        return ends - starts, *(part for places in (starts, ends - 1) for part in draws.at_places(places, ends))

    counts, *first_and_last = (part.numpy() for part in intervals_and_draws(tf.constant(shares)))
    assert counts.sum() == 2**32 and counts.min() >= 3
    np.testing.assert_allclose(counts / 2**32, shares / shares.sum(dtype=float), rtol=3e-5, atol=1.1 * 2**-30)
    for t, weight in zip(first_and_last[::2], first_and_last[1::2], strict=True):
        np.testing.assert_array_equal(t, np.arange(size))
        np.testing.assert_allclose(weight * counts, 2**32 / size, rtol=3e-7)  # what depends on t has its uniform mean


def even_draws(steps, batch, num_timesteps, **choices):
    """t of the given steps, int (steps, batch), and their weights."""
    x_0 = np.zeros((batch, 1, 1, 1), np.float32)
    drawn = [draws.draw(7, tf.constant(k, tf.int64), x_0, None, num_timesteps, **choices) for k in range(steps)]
    return np.array([each.t for each in drawn]), np.array([each.weight for each in drawn])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_stratified_t_are_uniform_and_spread_evenly(batch):
    """A t is B / T times in a batch, up to less than 1; an image has it in 1 / T of 400 steps, to 5 standard errors."""
    steps, of_each = 400, 10
    t, weight = even_draws(steps, batch, of_each, evenly=True)
    counts = np.stack([(t == i).sum(axis=1) for i in range(of_each)])
    assert np.all(np.abs(counts - batch / of_each) < 1)
    shares = np.stack([(t == i).mean(axis=0) for i in range(of_each)])
    assert np.all(np.abs(shares - 1 / of_each) < 5 * np.sqrt(0.1 * 0.9 / steps))
    np.testing.assert_array_equal(weight, 1)


def test_a_mean_over_stratified_t_scatters_less():
    """Of t / T it has 1 / B of the variance, 1 / (12 B^2) for 1 / (12 B); 300 steps know a ratio to 12 %."""
    batch, of_each = 64, 10_000
    means = [(even_draws(300, batch, of_each, evenly=evenly)[0] / of_each).mean(axis=1) for evenly in (False, True)]
    for mean, variance in zip(means, (1 / (12 * batch), 1 / (12 * batch**2)), strict=True):
        assert np.var(mean) == pytest.approx(variance, rel=0.4)
        assert abs(np.mean(mean) - 0.5) < 5 * np.sqrt(variance / 300)


def test_t_by_shares_are_spread_evenly_too():
    """Every count is B p(t) up to less than 1, and the weights are those of independent draws."""
    shares = np.array([1.0, 2.0, 0.5, 4.0])
    choices = {"shares": tf.constant(shares, tf.float32), "evenly": True}
    t, weight = even_draws(100, 33, 4, **choices)
    counts = np.stack([(t == i).sum(axis=1) for i in range(4)], axis=1)
    assert np.all(np.abs(counts - 33 * shares / shares.sum()) < 1)
    np.testing.assert_allclose(weight, (shares.sum() / 4 / shares)[t], rtol=1e-6)
    assert np.all(even_draws(3, 33, 4, **choices, undo_shares=False)[1] == 1)


def test_log_normal_draws_the_noise_of_edm_and_does_not_undo_it():
    """Bounds of 5 standard errors of independent draws; these are spread evenly and scatter less."""
    n, model = 20_000, small(timestep_sampling="log_normal")
    t, weight, *_ = drawn_by(model, 0, np.zeros((n, *SHAPE), np.float32))
    log_sigma = np.random.default_rng(0).normal(-1.2, 1.2, n)
    levels = np.log((1 - model.schedule.alpha_bars) / model.schedule.alpha_bars) / 2
    nearest = np.argmin(np.abs(log_sigma[:, np.newaxis] - levels), axis=1)
    expected = np.bincount(nearest, minlength=T) / n
    assert (abs(np.bincount(t, minlength=T) / n - expected) < 5 * np.sqrt(2 * (expected + 1 / n) / n)).all()
    np.testing.assert_array_equal(weight, 1)


def test_an_evaluation_counts_what_training_counts():
    """Its loss under log_normal is the mean over these shares of t, known to 0.001 from 5,000 images."""
    model, n = small(timestep_sampling="log_normal"), 5000
    shares = timesteps.log_normal_probabilities(model.schedule)
    t, _ = draws.draw_evaluation(0, 0, np.zeros((n, 1, 1, 1), np.float32), T, tf.constant(shares, tf.float32))
    assert np.abs(np.bincount(t, minlength=T) / n - shares).max() < 5 / n
    of_each = np.arange(1.0, T + 1).astype(np.float32)
    model._image_losses = lambda network, x_0, t, *rest, **options: tf.gather(of_each, t)
    found = evaluate(model, np.zeros((n, *SHAPE), np.uint8), batch_size=500)
    assert found == pytest.approx(of_each @ shares, rel=2e-3) and abs(found - of_each.mean()) > 1


def test_training_remembers_the_losses_of_each_t():
    """The unweighted ones, of every image; the weights of the network stay, so that they can be had by hand."""
    model = small(keras.optimizers.SGD(0.0), timestep_sampling="importance")
    give_history(model)
    squares, counts, reported = np.array(model.loss_squares), np.array(model.loss_counts), []
    x = random_pixels(12, *SHAPE)
    for k in range(3):
        x_0 = images.to_float(x[4 * k : 4 * k + 4])
        t, weight, eps, _, _ = drawn_by(model, k, x_0)
        x_t = model.diffusion.q_sample(x_0, t, eps)
        losses = np.square(eps - model.network([x_t, t]).numpy()).mean((1, 2, 3))
        squares, counts = timesteps.updated_loss_history(tf.constant(squares), tf.constant(counts), t, losses)
        reported.append(np.mean(weight * losses))
        history = train(model, x[4 * k : 4 * k + 4])
        np.testing.assert_allclose(history["loss"], reported[-1:], rtol=1e-5)
        np.testing.assert_allclose(model.loss_squares, squares, rtol=1e-5)
        np.testing.assert_array_equal(model.loss_counts, counts)
    assert counts.numpy().sum() == 10 * T + 12 and len({*np.round(reported, 3)}) == 3
    evaluate(model, x)
    np.testing.assert_array_equal(model.loss_counts, counts)  # evaluation is not remembered


def test_a_model_of_uniform_timesteps_has_no_history():
    assert {v.name for v in small(timestep_sampling="importance").variables} - {v.name for v in small().variables} == {
        "loss_squares",
        "loss_counts",
    }
