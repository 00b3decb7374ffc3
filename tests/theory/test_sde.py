"""The process in continuous time, against closed forms of Gaussian data and derivatives by differences."""

import itertools
import math

import numpy as np
import pytest

from kddpm.base.errors import InputError
from kddpm.theory import schedules, sde
from kddpm.toy import Mixture

STANDARD_ERRORS = 5  # a right path fails a comparison with probability 6e-7, once: the seeds are fixed
FAMILY = {
    "preserving, linear": sde.linear(),
    "exploding, linear": sde.linear(0.1, 6.0).exploding(),
    "exploding, geometric": sde.geometric(0.1, 10.0),
}
TIMES = (0.05, 0.3, 0.71, 1.0)
every_process = pytest.mark.parametrize("name", FAMILY)


@every_process
def test_drift_and_diffusion_belong_to_the_marginals(name):
    """Of any dx = f x dt + g dW the mean obeys s' = f s and the variance (n^2)' = 2 f n^2 + g^2."""
    process, h = FAMILY[name], 1e-5
    for t in TIMES[:-1]:
        slope = (process.signal(t + h) - process.signal(t - h)) / (2 * h)
        assert process.drift(t) * process.signal(t) == pytest.approx(slope, rel=1e-6, abs=1e-9)
        slope = (process.noise(t + h) ** 2 - process.noise(t - h) ** 2) / (2 * h)
        expected = 2 * process.drift(t) * process.noise(t) ** 2 + process.diffusion_squared(t)
        assert expected == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("t", TIMES)
def test_both_published_processes(t):
    """Song et al. 2021b, equations 29 to 33."""
    preserving, exploding = sde.linear(0.1, 20.0), sde.geometric(0.02, 100.0)
    beta = 0.1 + t * (20.0 - 0.1)
    assert preserving.drift(t) == pytest.approx(-beta / 2, rel=1e-12)
    assert preserving.diffusion_squared(t) == pytest.approx(beta, rel=1e-12)
    assert preserving.signal(t) == pytest.approx(math.exp(-(t**2) * (20.0 - 0.1) / 4 - t * 0.1 / 2), rel=1e-12)
    assert preserving.noise(t) ** 2 == pytest.approx(1 - preserving.signal(t) ** 2, rel=1e-12)
    sigma = 0.02 * (100.0 / 0.02) ** t
    assert (exploding.drift(t), exploding.signal(t)) == (0, 1)
    assert exploding.diffusion_squared(t) == pytest.approx(sigma**2 * 2 * math.log(100.0 / 0.02), rel=1e-12)
    assert exploding.noise(t) ** 2 == pytest.approx(sigma**2 - 0.02**2, rel=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_the_two_are_one_process_in_other_variables(t):
    """y = x / s: by Ito's formula f is f - s'/s = 0 and g is g / s; the density's score is s times that of x."""
    x_process = sde.linear()
    y_process, s = x_process.exploding(), x_process.signal(t)
    assert y_process.drift(t) == 0 and y_process.signal(t) == 1
    assert y_process.diffusion_squared(t) == pytest.approx(x_process.diffusion_squared(t) / s**2, rel=1e-12)
    assert y_process.noise(t) == pytest.approx(x_process.noise(t) / s, rel=1e-12)
    data, y = Mixture([1, 2], [[-1.0, 0.5], [0.7, 0.0]], [0.02, 0.1]), np.random.default_rng(0).normal(size=(50, 2))
    of_x = data.noised(x_process.signal(t), x_process.noise(t)).score(s * y)
    of_y = data.noised(y_process.signal(t), y_process.noise(t)).score(y)
    np.testing.assert_allclose(of_y, s * of_x, rtol=1e-12, atol=1e-12)


@every_process
def test_one_line_is_all_three_processes(name):
    process, rng = FAMILY[name], np.random.default_rng(0)
    x, score, z = rng.normal(size=(3, 20, 2))
    for t in TIMES:
        f, g = process.drift(t), math.sqrt(process.diffusion_squared(t))
        for h in (0.01, -0.01):
            noise = g * math.sqrt(abs(h)) * z
            sde_drift = f * x if h > 0 else f * x - g**2 * score
            taken = sde.euler_step(process, x, score, t, h, z)
            np.testing.assert_allclose(taken, x + h * sde_drift + noise, rtol=1e-12, atol=1e-12 * g**2)
            taken = sde.euler_step(process, x, score, t, h, z, stochasticity=0)
            np.testing.assert_allclose(taken, x + h * (f * x - g**2 / 2 * score), rtol=1e-12, atol=1e-12 * g**2)


def moments(process, times, stochasticity, mean, std):
    """Mean and variance at the last time of data N(mean, std^2), from the first on exact.

    The score is linear in x, so a step is a x + b + c z; three calls of it say what a, b and c are.
    """

    def marginal(t):
        return process.signal(t) * mean, process.signal(t) ** 2 * std**2 + process.noise(t) ** 2

    now, variance = marginal(times[0])
    for t, step in zip(times[:-1], np.diff(times), strict=True):
        centre, spread = marginal(t)
        x, z = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
        b, a, c = sde.euler_step(process, x, (centre - x) / spread, t, step, z, stochasticity)
        a, c = a - b, c - b
        now, variance = a * now + b, a**2 * variance + c**2
    return np.array([now, variance]), np.array(marginal(times[-1]))


@pytest.mark.parametrize("stochasticity", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@every_process
def test_the_weak_order_is_one(name, backwards, stochasticity):
    """Mean and variance of Gaussian data, without Monte Carlo: half the step is half the error."""
    errors = []
    for steps in (400, 800, 1600):
        times = np.linspace(0, 1, steps + 1)[:: -1 if backwards else 1]
        found, exact = moments(FAMILY[name], times, stochasticity, mean=0.4, std=0.5)
        errors.append(np.abs(found - exact))
    assert np.all(errors[-1] < 0.02 * (1 + np.abs(exact)))
    for coarse, fine in itertools.pairwise(errors):
        known = fine > 1e-12  # the mean of an exploding process never moves forwards
        assert known[1]
        np.testing.assert_allclose(coarse[known] / fine[known], 2, rtol=0.1)


@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
@every_process
def test_paths_end_in_the_marginals_of_a_mixture(name, stochasticity):
    """Shares of 5,000 points below ten quantiles, forwards and backwards; Euler's own error is at most 0.01."""
    process, count = FAMILY[name], 5000
    data = Mixture([1, 2], [[-0.6], [0.5]], [0.01, 0.04])

    def marginal(t):
        return data.noised(process.signal(t), process.noise(t))

    for start, end in ((0.0, 1.0), (1.0, 0.0)):
        times = np.linspace(start, end, 201)
        begun, wanted = marginal(start).draw(count, seed=1), np.sort(marginal(end).draw(count, seed=2)[:, 0])
        way = sde.paths(process, lambda x, t: marginal(t).score(x), begun, times, stochasticity, seed=3)
        assert way.shape == (201, count, 1) and np.array_equal(way[0], begun)
        for share in np.arange(1, 11) / 11:
            below = np.mean(way[-1] < wanted[int(share * count)])
            assert abs(below - share) < STANDARD_ERRORS * np.sqrt(2 * share * (1 - share) / count) + 0.01


def test_the_ode_runs_back_to_where_it_came_from_and_the_sde_does_not():
    process, data = sde.linear(), Mixture([1, 2], [[-0.6], [0.5]], [0.01, 0.04])
    times, begun = np.linspace(0, 1, 2001), data.draw(50)

    def score(x, t):
        return data.noised(process.signal(t), process.noise(t)).score(x)

    for stochasticity, least, most in ((0.0, 0.0, 0.02), (1.0, 0.2, 2.0)):
        noise = sde.paths(process, score, begun, times, stochasticity)[-1]
        again = sde.paths(process, score, noise, times[::-1], stochasticity, seed=1)[-1]
        assert least <= np.sqrt(np.mean((again - begun) ** 2)) < most


def test_schedules_are_its_discrete_forms():
    """alpha_bar of more and more steps; the linear schedule of Ho et al. 2020 is that of T = 1000."""
    process, errors = sde.linear(), []
    for steps in (1000, 2000):
        schedule = schedules.linear(steps, 0.1 / steps, 20.0 / steps)
        ends = np.array([process.signal((t + 1) / steps) ** 2 for t in range(steps)])
        errors.append(np.max(np.abs(schedule.alpha_bars - ends)))
    assert errors[0] < 2e-3 and errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    np.testing.assert_array_equal(schedules.linear(1000, 0.1 / 1000, 20.0 / 1000).betas, schedules.linear(1000).betas)
    schedule, process = schedules.variance_exploding(11), sde.geometric()
    ends = [process.noise(t / 10) ** 2 + 0.02**2 for t in range(11)]
    np.testing.assert_allclose(np.exp(2 * schedule.log_sigmas), ends, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: sde.linear(0, 20), "`beta_start` must be positive. Received: 0"),
        (lambda: sde.linear(0.1, -1), "`beta_end` must be positive. Received: -1"),
        (lambda: sde.linear(beta_end=math.nan), "`beta_end` must be a number. Received: nan"),
        (lambda: sde.geometric(0, 1), "`sigma_min` must lie between 0 and sigma_max=1. Received: 0"),
        (lambda: sde.geometric(3, 1), "`sigma_min` must lie between 0 and sigma_max=1. Received: 3"),
    ],
)
def test_bad_values_are_named(make, text):
    with pytest.raises(InputError, match=text):
        make()
