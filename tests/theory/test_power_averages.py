"""Averages of any length: against quadrature, and against averages that were kept all along."""

import numpy as np
import pytest

from kddpm.base.errors import InputError
from kddpm.theory import power_averages

NODES, SHARES = np.polynomial.legendre.leggauss(200)
LENGTHS = (0.05, 0.1)
EXPONENTS = [power_averages.exponent_of(length) for length in LENGTHS]


def integral(function, end):
    """From 0 to `end`, by Gauss and Legendre."""
    return end / 2 * SHARES @ function(end / 2 * (NODES + 1))


def profile(exponent, end):
    return lambda s: (exponent + 1) * s**exponent / end ** (exponent + 1) * (s <= end)


def of_steps(exponent, steps):
    """How much each step counts: the profile within it, a midpoint rule of a thousand points."""
    s = (np.arange(1000 * steps) + 0.5) / 1000
    return profile(exponent, steps)(s).reshape(steps, 1000).mean(axis=1)


def snapshots(count, steps):
    """Exponents and ends of two averages at equal distances."""
    return np.tile(EXPONENTS, count), np.repeat(np.arange(1, count + 1) * steps // count, 2)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.288])
def test_the_length_is_the_deviation_of_the_profile(length):
    gamma = power_averages.exponent_of(length)
    mean = integral(lambda s: s * profile(gamma, 1)(s), 1)
    variance = integral(lambda s: (s - mean) ** 2 * profile(gamma, 1)(s), 1)
    assert np.sqrt(variance) == pytest.approx(length, rel=1e-6)
    assert power_averages.length_of(gamma) == pytest.approx(length, rel=1e-9)


def test_the_exponents_are_those_of_the_paper():
    assert [round(exponent, 2) for exponent in EXPONENTS] == [16.97, 6.94]
    assert power_averages.exponent_of(power_averages.LONGEST) == 0


def test_updates_keep_the_profile():
    """Each step counts as much as the profile says, whatever came after it."""
    for gamma in (0.0, *EXPONENTS):
        shares = np.zeros(30)
        for step in range(1, 31):
            keep = power_averages.momentum(gamma, step)
            shares = keep * shares
            shares[step - 1] += 1 - keep
        np.testing.assert_allclose(shares, of_steps(gamma, 30), atol=1e-6)


def test_inner_products_are_integrals():
    exponents, ends = [0.0, 6.94, 16.97, 90.0], [3.0, 20.0, 7.0, 20.0]
    others, other_ends = [2.5, 16.97, 6.94], [20.0, 7.0, 12.0]
    found = power_averages.inner_products(exponents, ends, others, other_ends)
    for row, gamma, end in zip(found, exponents, ends, strict=True):
        for value, other, other_end in zip(row, others, other_ends, strict=True):
            both = lambda s: profile(gamma, end)(s) * profile(other, other_end)(s)  # noqa: B023, E731
            assert value == pytest.approx(integral(both, min(end, other_end)), rel=1e-9)


def test_an_average_that_is_there_is_taken():
    exponents, ends = snapshots(6, 60)
    factors, errors = power_averages.combination(exponents, ends, EXPONENTS, 60)
    np.testing.assert_allclose(factors[-2:], np.eye(2), atol=1e-6)
    np.testing.assert_allclose(factors[:-2], 0, atol=1e-6)
    assert errors.max() < 1e-6


@pytest.mark.parametrize("length", [0.02, 0.07, 0.2, 0.27])
def test_the_error_is_the_distance_of_the_profiles(length):
    """And no other factors of sum 1 make it much smaller."""
    exponents, ends = snapshots(10, 60)
    gamma = power_averages.exponent_of(length)
    factors, (error,) = power_averages.combination(exponents, ends, [gamma], 60)
    factors = factors[:, 0]
    assert factors.sum() == pytest.approx(1, abs=1e-9)

    def distance(factors):
        s = (np.arange(60_000) + 0.5) / 1000
        known = [profile(g, end)(s) for g, end in zip(exponents, ends, strict=True)]
        wanted = profile(gamma, 60)(s)
        return np.linalg.norm(factors @ known - wanted) / np.linalg.norm(wanted)

    assert distance(factors) == pytest.approx(error, rel=1e-3)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 1e-1):
        other = factors + size * rng.normal(size=len(factors))
        assert distance(other / other.sum()) > 0.99 * error


def test_what_is_rebuilt_is_what_would_have_been_kept():
    """On a walk of 400 steps, with averages of every length kept beside it. Cauchy and Schwarz bound the difference."""
    rng = np.random.default_rng(0)
    path = np.cumsum(0.1 * rng.normal(size=(400, 50)), axis=0) + rng.normal(size=(400, 50))
    lengths = np.array([0.02, 0.03, *LENGTHS, 0.15, 0.25])
    gammas = [power_averages.exponent_of(length) for length in lengths]
    kept, taken = np.zeros((len(lengths), 50)), []
    for step, weights in enumerate(path, 1):
        keep = np.array([[power_averages.momentum(gamma, step)] for gamma in gammas])
        kept = keep * kept + (1 - keep) * weights
        if step % 20 == 0:
            taken += list(kept[2:4])
    factors, errors = power_averages.combination(*snapshots(20, 400), gammas, 400)
    rebuilt = factors.T @ taken
    norms = [np.sqrt(integral(lambda s: profile(gamma, 400)(s) ** 2, 400)) for gamma in gammas]  # noqa: B023
    bounds = errors * norms * np.linalg.norm(path - path.mean(axis=0))
    off = np.linalg.norm(rebuilt - kept, axis=1)
    assert np.all(off <= 1.01 * bounds + 1e-9)
    from_last = np.linalg.norm(path[-1] - kept, axis=1)
    assert np.all(off < 0.1 * from_last), off / from_last
    assert off[2:4].max() < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_averages.exponent_of(0), r"`length` must lie in \(0, 0.2887\]. Received: 0"),
        (lambda: power_averages.exponent_of(0.3), r"`length` must lie in \(0, 0.2887\]. Received: 0.3"),
        (lambda: power_averages.exponent_of(float("nan")), "`length` must be a number. Received: nan"),
        (lambda: power_averages.length_of(-0.5), "`exponent` must be at least 0. Received: -0.5"),
        (lambda: power_averages.momentum(7, 0), "`step` must be an integer of at least 1. Received: 0"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
