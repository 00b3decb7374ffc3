import math

import keras
import numpy as np
import pytest

from kddpm.base.errors import InputError
from kddpm.theory import schedules
from kddpm.toy import Mixture, MixtureNetwork

STANDARD_ERRORS = 5
PLANE = Mixture([1, 2, 3], [[-1.0, 0.5], [0.7, 0.0], [0.0, -0.8]], [0.02, 0.1, 0.05])
LINE = Mixture([1, 3], [[-0.5], [0.8]], [0.04, 0.01])


def test_the_density_is_a_density():
    side = np.linspace(-4, 4, 801)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    assert np.sum(np.exp(PLANE.log_density(grid))) * (side[1] - side[0]) ** 2 == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(PLANE.shares(grid).sum(axis=1), 1, rtol=1e-12)


def test_the_score_is_the_gradient_of_the_log_density():
    """Central differences of step 1e-5, whose error is 1e-10 times a third derivative, at several noise levels."""
    h = 1e-5
    for noise in (0.0, 0.3, 2.0):
        mixture, x = PLANE.noised(np.sqrt(0.7), noise), np.random.default_rng(0).normal(size=(200, 2))
        slopes = [
            (mixture.log_density(x + h * axis) - mixture.log_density(x - h * axis)) / (2 * h) for axis in np.eye(2)
        ]
        np.testing.assert_allclose(mixture.score(x), np.stack(slopes, axis=1), rtol=1e-6, atol=1e-6)


def test_noise_is_a_convolution():
    """The density of s x_0 + n eps as the integral over x_0, by the trapezoid rule."""
    signal, noise = 0.6, 0.5
    x_0, x = np.linspace(-3, 3, 6001), np.linspace(-2, 2, 21)
    kernel = np.exp(-((x[:, np.newaxis] - signal * x_0) ** 2) / (2 * noise**2)) / np.sqrt(2 * np.pi * noise**2)
    density = sum(
        w * np.exp(-((x_0 - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
        for w, m, v in ((0.25, -0.5, 0.04), (0.75, 0.8, 0.01))
    )
    expected = kernel @ density * (x_0[1] - x_0[0])
    np.testing.assert_allclose(np.exp(LINE.noised(signal, noise).log_density(x[:, np.newaxis])), expected, rtol=1e-12)


def test_draws_are_of_the_density():
    points = LINE.draw(100_000, seed=1)[:, 0]
    mean, second = 0.25 * -0.5 + 0.75 * 0.8, 0.25 * (0.25 + 0.04) + 0.75 * (0.64 + 0.01)
    below = 0.25 * (1 + math.erf(0.65 / 0.2 / math.sqrt(2))) / 2  # of 0.15, where the other component has nothing
    for values, expected in ((points, mean), (points**2, second), (points < 0.15, below)):
        assert abs(np.mean(values) - expected) < STANDARD_ERRORS * np.std(values) / np.sqrt(len(points))
    assert np.array_equal(LINE.draw(5, seed=3), LINE.draw(5, seed=3)) and PLANE.draw(7).shape == (7, 2)


def test_far_points_have_finite_scores():
    far = np.array([[1e6, -1e6], [0.0, 1e8]])
    assert np.isfinite(PLANE.score(far)).all() and np.isfinite(PLANE.log_density(far)).all()


def test_what_has_no_density_says_so():
    points = Mixture([1, 1], [[-1.0], [1.0]], [0, 0])
    with pytest.raises(InputError, match="`variances` must be positive for a density; `noised` adds to them"):
        points.score(np.zeros((3, 1)))
    assert np.isfinite(points.noised(1.0, 0.1).score(np.zeros((3, 1)))).all()
    with pytest.raises(InputError, match=r"`x` must be points \(N, 2\). Received: shape \(3, 1\)"):
        PLANE.log_density(np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1, 1], [[0.0]], [1]), r"`weights` must be \(K,\), with `means` \(K, d\) and `variances` \(K,\)"),
        (([1], [0.0], [1]), r"Received: shapes \(1,\), \(1,\), \(1,\)"),
        (([0, 1], [[0.0], [1.0]], [1, 1]), r"`weights` must be positive. Received: \[0, 1\]"),
        (([1, 1], [[0.0], [1.0]], [1, -1]), r"`variances` must be at least 0. Received: \[1, -1\]"),
    ],
)
def test_bad_mixtures_are_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        Mixture(*arguments)


def test_the_network_of_a_mixture_is_its_score(tmp_path):
    """eps = -n score, by the mixture noised to every t; float32 at the end."""
    schedule, x = schedules.cosine(50), np.random.default_rng(0).normal(size=(300, 1, 1, 2)).astype(np.float32)
    network = MixtureNetwork((1, 1, 2), schedule, PLANE)
    for t in (0, 10, 30, 49):
        signal, noise = np.sqrt(schedule.alpha_bars[t]), np.sqrt(schedule.one_minus_alpha_bars[t])
        expected = -noise * PLANE.noised(signal, noise).score(x.reshape(-1, 2).astype(np.float64))
        made = network([x, np.full(300, t, np.int32)]).numpy().reshape(-1, 2)
        np.testing.assert_allclose(made, expected, rtol=2e-6, atol=2e-6)
    network.save(tmp_path / "mixture.keras")
    again = keras.models.load_model(tmp_path / "mixture.keras")
    np.testing.assert_array_equal(again([x, np.full(300, 3)]), network([x, np.full(300, 3)]))


def test_the_network_of_a_mixture_wants_its_dimensions_and_plain_steps():
    with pytest.raises(InputError, match="`mixture` must have 4 dimensions. Received: 2"):
        MixtureNetwork((2, 2, 1), schedules.cosine(50), PLANE)
    with pytest.raises(InputError, match=r"`schedule` must name its steps 0 .. T - 1. Received: a respaced schedule"):
        MixtureNetwork((1, 1, 2), schedules.cosine(50).respace([3, 49]), PLANE)
