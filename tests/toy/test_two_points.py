import math

import numpy as np
import pytest

from kddpm import toy
from kddpm.base.errors import InputError

WIDTH = 1 / 512  # a power of two, so that no node is rounded: rounding alone would cost 3e-13 nats
GRID = WIDTH * np.arange(-9 * 512, 9 * 512 + 1)


def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def marginal(x, alpha_bar):
    """q(x) of the two points at that noise level."""
    root = math.sqrt(alpha_bar)
    return (normal(x, root, 1 - alpha_bar) + normal(x, -root, 1 - alpha_bar)) / 2


def bayes(x_t, beta, alpha_bar_prev):
    """q(x_{t-1} | x_t) on the grid, from q(x_t | x_{t-1}) q(x_{t-1}), normalised by the trapezoid rule."""
    product = normal(x_t, math.sqrt(1 - beta) * GRID, beta) * marginal(GRID, alpha_bar_prev)
    return product / (product.sum() * WIDTH)


@pytest.mark.parametrize("alpha_bar_prev", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("beta", [0.01, 0.3, 0.9])
def test_the_reverse_conditional_is_bayes_rule(beta, alpha_bar_prev):
    for x_t in (-1.3, 0.0, 0.4):
        found = np.exp(toy.reverse_conditional(x_t, beta, alpha_bar_prev).log_density(GRID[:, np.newaxis]))
        np.testing.assert_allclose(found, bayes(x_t, beta, alpha_bar_prev), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_both_moments_follow_from_the_density_of_x_t(beta):
    """docs/theory.md, section 3; log q(x_t) is a parabola and a log cosh, whose derivatives are written out."""
    alpha_bar = 0.5 * (1 - beta)
    scale, root = math.sqrt(alpha_bar) / (1 - alpha_bar), math.sqrt(1 - beta)
    for x_t in (-1.1, 0.3, 0.9):
        tanh = math.tanh(scale * x_t)
        first, second = -x_t / (1 - alpha_bar) + scale * tanh, -1 / (1 - alpha_bar) + scale**2 * (1 - tanh**2)
        found = toy.reverse_conditional(x_t, beta)
        mean = found.weights @ found.means[:, 0]
        variance = found.weights @ (found.variances + (found.means[:, 0] - mean) ** 2)
        assert mean == pytest.approx((x_t + beta * first) / root, rel=1e-12)
        assert variance == pytest.approx(beta / (1 - beta) * (1 + beta * second), rel=1e-12)


def test_a_far_point_is_of_one_component():
    assert toy.reverse_conditional(1e5, 0.1).shares(np.array([[1e5]]))[0, 0] == 1


def gap_by_trapezoids(beta, alpha_bar_prev):
    total, outer = 0.0, np.linspace(-8, 8, 321)
    weights = marginal(outer, (1 - beta) * alpha_bar_prev) * (outer[1] - outer[0])
    for x_t, weight in zip(outer, weights, strict=True):
        density = bayes(x_t, beta, alpha_bar_prev)
        mean = np.sum(GRID * density) * WIDTH
        variance = np.sum((GRID - mean) ** 2 * density) * WIDTH
        x, density = GRID[density > 1e-200], density[density > 1e-200]
        log_normal = -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
        total += weight * np.sum(density * (np.log(density) - log_normal)) * WIDTH
    return total


@pytest.mark.parametrize(("beta", "quoted"), [(0.5, 4.5e-3), (0.1, 1.1e-4), (0.01, 1.6e-7)])
def test_the_gap_is_that_of_another_quadrature(beta, quoted):
    """docs/theory.md quotes these."""
    found = toy.gaussian_gap_nats(beta)
    assert float(f"{found:.1e}") == quoted
    assert found == pytest.approx(gap_by_trapezoids(beta, 0.5), rel=1e-7, abs=0)


@pytest.mark.parametrize(("beta", "alpha_bar_prev"), [(0.9, 0.5), (0.2, 0.2), (0.2, 0.8)])
def test_the_gap_at_other_levels(beta, alpha_bar_prev):
    found = toy.gaussian_gap_nats(beta, alpha_bar_prev)
    assert found == pytest.approx(gap_by_trapezoids(beta, alpha_bar_prev), rel=1e-6)


@pytest.mark.parametrize("alpha_bar_prev", [0.2, 0.5])
def test_the_gap_falls_with_the_cube_of_beta(alpha_bar_prev):
    """beta^3 / 12 E[(log q)'''^2]; log q has a log cosh, whose third derivative is written out."""
    scale = math.sqrt(alpha_bar_prev) / (1 - alpha_bar_prev)
    tanh = np.tanh(scale * GRID)
    third = -2 * scale**3 * tanh * (1 - tanh**2)
    leading = np.sum(marginal(GRID, alpha_bar_prev) * third**2) * WIDTH / 12
    for beta, error in ((1e-2, 0.06), (1e-3, 0.006)):
        assert toy.gaussian_gap_nats(beta, alpha_bar_prev) / beta**3 == pytest.approx(leading, rel=error)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: toy.gaussian_gap_nats(0), "`beta` must lie strictly between 0 and 1. Received: 0"),
        (lambda: toy.gaussian_gap_nats(2), "`beta` must lie strictly between 0 and 1. Received: 2"),
        (lambda: toy.gaussian_gap_nats(0.5, 1), "`alpha_bar_prev` must lie strictly between 0 and 1. Received: 1"),
        (lambda: toy.reverse_conditional(math.nan, 0.5), "`x_t` must be a number. Received: nan"),
    ],
)
def test_numbers_out_of_range_are_refused(make, text):
    with pytest.raises(InputError, match=text):
        make()
