"""A learned schedule, for data N(0, 0.25^2) in every element: everything about it has a closed form.

The best denoiser leaves E[e | gamma] = m = v / (v + exp(gamma)), v = 0.25^2. E[e^2] is (1 + 2 / d) m^2 in d elements.
The integral of m is -log(1 + v exp(-gamma)); that of m^2 is the integral of m plus m.
"""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.places import ROOT

from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.theory import learned

V, SIZE, ENDS = 0.25**2, 64, (-8.0, 4.0)
GRID = np.linspace(0, 1, 1001)


def best(z, log_snr):
    return toy.gaussian_x0(z, log_snr, 0.0, 0.25)


def left_out(gamma):
    return V / (V + np.exp(gamma))


def integral(gamma):
    return -np.log1p(V * np.exp(-gamma))


def images(count=4000):
    return np.random.default_rng(0).normal(0, 0.25, (count, SIZE))


def bent(seed=0):
    """A gamma of some other shape."""
    gamma = learned.Gamma(ENDS, pieces=10)
    gamma.shape.assign(np.random.default_rng(seed).normal(size=10))
    return gamma


@pytest.fixture(scope="module")
def found():
    """gamma at the points of GRID, learned."""
    return 2 * learned.schedule(best, images(), len(GRID), ends=ENDS, train_ends=False, steps=1000).log_sigmas


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_does_not_know_the_shape(seed):
    """1/2 E[gamma' e] by quadrature over t, x_0 and eps, for any gamma: half the integral of m. gamma is float32."""
    gamma, (nodes, weights) = bent(seed), np.polynomial.hermite_e.hermegauss(4)
    x_0, noise = (part.reshape(-1, 1) for part in np.meshgrid(0.25 * nodes, nodes))
    of_node = np.outer(weights, weights).ravel() / weights.sum() ** 2
    points, of_point = np.polynomial.legendre.leggauss(12)
    knots = np.append(0, np.cumsum(np.exp(gamma.shape)))
    total = 0.0
    for start, end in itertools.pairwise(knots / knots[-1]):
        t = start + (end - start) * (points + 1) / 2
        for at, rate, share in zip(*gamma(tf.constant(t, tf.float32)), (end - start) / 2 * of_point, strict=True):
            e = learned.squared_error(best, x_0, noise, np.full(len(x_0), float(at)))
            total += share * float(rate) / 2 * np.sum(of_node * e)
    assert total == pytest.approx((integral(ENDS[1]) - integral(ENDS[0])) / 2, rel=2e-6)


def test_gamma_rises_from_end_to_end():
    gamma, (values, rates) = bent(), bent()(tf.constant(GRID, tf.float32))
    np.testing.assert_allclose([values[0], values[-1]], ENDS, rtol=1e-6)
    assert np.all(np.diff(values) > 0) and np.all(rates > 0)
    with tf.GradientTape() as tape:
        t = tf.constant([0.123, 0.5, 0.77])
        tape.watch(t)
        values, rates = gamma(t)
    np.testing.assert_allclose(tape.gradient(values, t), rates, rtol=1e-5)


def test_the_shape_becomes_the_best_there_is(found):
    """dt/dgamma in proportion to m, so t(gamma) is a ratio of integrals: learned to 0.003 of the way."""
    best_t = (integral(found) - integral(ENDS[0])) / (integral(ENDS[1]) - integral(ENDS[0]))
    assert found[0] == pytest.approx(ENDS[0], abs=1e-4) and found[-1] == pytest.approx(ENDS[1], abs=1e-4)
    assert np.abs(best_t - GRID).max() < 0.003


def test_the_loss_scatters_less(found):
    """E[l^2] of a straight gamma, of the learned one by quadrature, and the least; docs/theory.md quotes the ratio."""
    whole = integral(ENDS[1]) - integral(ENDS[0])
    square = (1 + 2 / SIZE) / 4
    straight = square * (ENDS[1] - ENDS[0]) * (whole + left_out(ENDS[1]) - left_out(ENDS[0]))
    rises, between = np.diff(found), (left_out(found[1:]) + left_out(found[:-1])) / 2
    of_learned, least = square * np.sum(rises**2 * between**2) * (len(GRID) - 1), square * whole**2
    assert least < of_learned < 1.002 * least
    variances = [moment - whole**2 / 4 for moment in (straight, of_learned, least)]
    ratios = variances[0] / variances[1], variances[0] / variances[2]
    assert ratios[0] == pytest.approx(28.4, abs=0.5) and ratios[1] == pytest.approx(29.3, abs=0.1)
    assert "falls 28 times, to the best one 29 times" in " ".join((ROOT / "docs" / "theory.md").read_text().split())
    # Every t has the same loss, here in means over fiftieths of the way.
    each = (rises * between).reshape(50, -1).sum(axis=1)
    assert np.all(np.abs(each / each.mean() - 1) < 0.05)


def root(function, low, high):
    """Where a function of one sign at `low` and another at `high` is 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(low) * function(middle) > 0 else (low, middle)
    return low


def test_the_ends_minimise_the_bound():
    """A denoiser that is 0.1 n^2 off has e = m + 0.01 n^2 s^2. Both derivatives of L, by quadrature in NumPy, are 0."""
    off = 0.1

    def biased(z, log_snr):
        return best(z, log_snr) + off * tf.sigmoid(-log_snr)[:, tf.newaxis]

    def error(gamma):
        n2 = 1 / (1 + np.exp(-gamma))
        return left_out(gamma) + off**2 * n2 * (1 - n2)

    def of_prior(gamma):  # L_T = (s^2 V + n^2 - 1 - log n^2) / 2
        n2 = 1 / (1 + np.exp(-gamma))
        return (n2 * (1 - n2) * (1 - V) - (1 - n2)) / 2 + error(gamma) / 2

    nodes = np.linspace(-9, 9, 20_001)
    density = np.exp(-(nodes**2) / 2) / np.exp(-(nodes**2) / 2).sum()

    normal = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))

    def pixels(gamma):
        half = 1 / 255 / np.exp(gamma / 2)
        return -np.sum(density * np.log(np.maximum(normal(half - nodes) - normal(-half - nodes), 1e-300)))

    def of_pixels(gamma):
        return (pixels(gamma + 0.01) - pixels(gamma - 0.01)) / 0.02 - error(gamma) / 2

    made = 2 * learned.schedule(biased, images(), 2, ends=(-7.0, 2.0), steps=1500).log_sigmas
    assert made[0] == pytest.approx(root(of_pixels, -12, -5), abs=0.1)
    assert made[1] == pytest.approx(root(of_prior, 1, 8), abs=0.2)


def test_unusable_values_are_named():
    with pytest.raises(InputError, match=r"`ends` must be two finite numbers that increase. Received: \(1, 1\)"):
        learned.schedule(best, images(10), ends=(1, 1))
    with pytest.raises(InputError, match="`steps` must be an integer of at least 1. Received: 0"):
        learned.schedule(best, images(10), steps=0)
    with pytest.raises(InputError, match="`num_timesteps` must be an integer of at least 1. Received: 0"):
        learned.schedule(best, images(10), 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": np.zeros((3, 4), np.uint8)}, "`images` must be float, in or about"),
        ({"images": np.full((3, 4), 200.0)}, "`images` must be float, in or about"),
        ({"images": np.zeros((0, 4))}, "`images` must be float, in or about"),
        ({"ends": 3}, "`ends` must be two finite numbers that increase. Received: 3"),
        ({"ends": (-np.inf, 1.0)}, "`ends` must be two finite numbers that increase"),
        ({"seed": 2**40}, "`seed` must .*int32"),
    ],
)
def test_what_no_schedule_can_be_learned_of(change, text):
    with pytest.raises(InputError, match=text):
        learned.schedule(lambda z, log_snr: z, **{"images": np.zeros((3, 4)), "steps": 1, **change})
