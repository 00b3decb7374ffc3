"""Training on the bound: the losses of the three estimators, and what they teach."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.theory import parametrization, schedules
from kddpm.theory.process import GaussianDiffusion

MEAN, STD, SCHEDULE = 0.1, 0.3, schedules.linear(8, 0.02, 0.6)


def best_reverse(x_t, t):
    """The exact way back for pixels N(MEAN, STD^2)."""
    variances = toy.gaussian_variances(SCHEDULE, STD)
    eps = toy.gaussian_eps(SCHEDULE, x_t, t, MEAN, STD)
    mean, _ = GaussianDiffusion(SCHEDULE).p_mean_log_variance(x_t, t, eps, None, parametrization.Objective())
    return mean, tf.reshape(tf.gather(tf.constant(np.log(variances)), t), (-1, 1))


@pytest.mark.parametrize("estimator", ["trajectory", "pair", "one_sample"])
def test_every_loss_is_the_entropy_of_gaussian_data_where_the_network_is_exact(estimator):
    """40,000 estimates, to 5 standard errors; x_T of the data and of the model differ by KL(q(x_T) || N(0, 1))."""
    x_0 = tf.constant(np.random.default_rng(0).normal(MEAN, STD, (40_000, 3)))
    values = np.array(toy.bound_loss(estimator, SCHEDULE, best_reverse)(x_0, tf.constant([1, 2])))
    signal = SCHEDULE.alpha_bars[-1]
    variance = signal * STD**2 + 1 - signal
    gap = 0.5 * (variance + signal * MEAN**2 - 1 - np.log(variance))
    expected = 0.5 * np.log(2 * np.pi * np.e * STD**2) + gap
    assert values.shape == (40_000,)
    assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(values.size)
    assert values.std() / np.sqrt(values.size) < 0.03


def test_an_unknown_estimator_is_refused():
    with pytest.raises(InputError, match="must be one of trajectory, pair, one_sample. Received: 'triple'"):
        toy.bound_loss("triple", SCHEDULE, best_reverse)


def test_numbers_that_do_not_divide_are_refused():
    plane = toy.BY_NAME["points"]
    for options, text in (
        ({"calls": 30}, "`calls` must be a multiple of 20 steps. Received: 30"),
        ({"every": 70}, "`every` must be a multiple of 50. Received: 70"),
        ({"steps": 120}, "`steps` must be a multiple of 50. Received: 120"),
    ):
        with pytest.raises(InputError, match=text):
            toy.learning_curves(plane, **options)
    with pytest.raises(InputError, match="`fixed` must have 2 steps. Received: 3"):
        toy.hierarchical_vae(2, schedules.cosine(3))


def test_descent_finds_a_mean_and_is_a_function_of_its_seed():
    """The least of E|x - w|^2 is the mean of the points."""
    points = np.random.default_rng(0).normal(0.7, 0.1, (5000, 2)).astype(np.float32)
    weight, watched = keras.Variable(np.zeros(2, "f")), []
    descent = toy.Descent(lambda x, seeds: tf.reduce_sum((x - weight.value) ** 2, 1), [weight], points, 100, 400, 0.05)
    found = []
    for seed in (0, 0, 1):
        weight.assign(np.zeros(2))
        descent.run(seed, watched.append)
        found.append(np.array(weight))
    np.testing.assert_allclose(found[0], points.mean(axis=0), atol=0.01)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert watched == 3 * list(range(50, 401, 50))


def test_learning_curves_start_together_and_fall():
    plane = toy.BY_NAME["points"]
    calls, curves = toy.learning_curves(plane, seeds=(0, 5), num_timesteps=2, calls=100, steps=100)
    exact = toy.exact_nats(plane, plane.draw(500, seed=1))
    np.testing.assert_array_equal(calls, [0, 5000, 10_000])
    assert list(curves) == ["trajectory", "pair", "one_sample"]
    for rows in curves.values():
        assert rows.shape == (2, 3) and np.all(rows[:, -1] < rows[:, 0]) and np.all(rows > exact)
        np.testing.assert_array_equal(rows[:, 0], curves["pair"][:, 0])


@pytest.mark.slow
def test_one_sample_learns_more_of_the_same_calls():
    """docs/theory.md, section 4: less is left at every point of the curves, means of three runs."""
    _, curves = toy.learning_curves(toy.BY_NAME["points"])
    means = {name: rows.mean(axis=0)[1:] for name, rows in curves.items()}
    assert np.all(means["one_sample"] < np.minimum(means["trajectory"], means["pair"]))
