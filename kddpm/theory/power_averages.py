"""Averages of the weights whose length is chosen after training: Karras et al. 2024, section 3 and appendix C.

The power-function average of the weights w(1), ..., w(t) of t steps weighs step s by about s^gamma. Its profile, how
much each moment of training counts, is

    p(s) = (gamma + 1) s^gamma / t^(gamma + 1),   0 <= s <= t                                            (1)

and step i has what lies between i - 1 and i. The profile grows with training, so that the start is forgotten whatever
t is. Its length is its standard deviation over t, sigma_rel of the paper:

    length = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)                                       (2)

An update a step keeps the average exactly:

    mean(t) = m mean(t - 1) + (1 - m) w(t),   m = (1 - 1 / t)^(gamma + 1)                                (3)

Averages of several gamma, at several t, are known from snapshots. For profiles a and b that end at t_a <= t_b,

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b          (4)

so the factors c with which the snapshots' profiles come nearest to a wanted one, p, follow from

    sum_j <p_i, p_j> c_j = <p_i, p>   for every snapshot i                                               (5)

The same sum of the snapshots themselves is the average of the wanted length. Here the factors are also divided by
their sum, so that weights that stay the same are their own average.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kddpm.base import arguments
from kddpm.base.errors import InputError

LONGEST = math.sqrt(1 / 12)  # the length of gamma = 0, where all steps count the same


def exponent_of(length: float) -> float:
    """Return gamma of a length, by (2): the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / length^2.

    Args:
        length: standard deviation of the profile over the length of training, in (0, `LONGEST`].

    Raises:
        InputError: it is not in this range.
    """
    if not 0 < arguments.number("length", length) <= LONGEST:
        raise InputError("length", f"must lie in (0, {LONGEST:.4f}]", length)
    inverse = 1 / length**2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def length_of(exponent: float) -> float:
    """Return the length of gamma, by (2).

    Raises:
        InputError: `exponent` is negative.
    """
    if arguments.number("exponent", exponent) < 0:
        raise InputError("exponent", "must be at least 0", exponent)
    return math.sqrt((exponent + 1) / (exponent + 3)) / (exponent + 2)


def momentum(exponent: float, step: int) -> float:
    """Return m of (3), the fraction of the average that step `step` keeps; 0 at the first, which is 1.

    Raises:
        InputError: `step` is not an integer of at least 1.
    """
    return (1 - 1 / arguments.count("step", step)) ** (exponent + 1)


def inner_products(
    exponents: ArrayLike, ends: ArrayLike, other_exponents: ArrayLike, other_ends: ArrayLike
) -> np.ndarray:
    """Return the inner product of each of some profiles with each of others, by (4).

    Args:
        exponents: gamma of the profiles, (N,).
        ends: the steps t at which they end, (N,).
        other_exponents: gamma of the others, (M,).
        other_ends: the steps at which these end, (M,).

    Returns:
        float64 (N, M), in 1 / steps.
    """
    gamma, t = (np.asarray(array, np.float64)[:, np.newaxis] for array in (exponents, ends))
    other_gamma, other_t = (np.asarray(array, np.float64)[np.newaxis] for array in (other_exponents, other_ends))
    first, last = np.minimum(t, other_t), np.maximum(t, other_t)
    of_later = np.where(t < other_t, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * (first / last) ** of_later / last


def combination(
    exponents: ArrayLike, ends: ArrayLike, wanted: Sequence[float] | np.ndarray, end: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors with which averages add up to those of other exponents, by (5).

    Args:
        exponents: gamma of the averages that are known, (N,).
        ends: the steps at which these were taken, (N,).
        wanted: gamma of the averages that are wanted, (M,).
        end: the step at which they end, at most the last of `ends`.

    Returns:
        The factors, float64 (N, M), of sum 1 each; and by how much the profile of each sum misses the wanted one,
        (M,), the root of the squared distance over the squared norm: 0 = exactly, 1 = as much as nothing at all.
    """
    ends_wanted = np.full(len(wanted), end)
    gram = inner_products(exponents, ends, exponents, ends)
    products = inner_products(exponents, ends, wanted, ends_wanted)
    squares = np.diag(inner_products(wanted, ends_wanted, wanted, ends_wanted))
    scale = 1 / np.sqrt(np.diag(gram))[:, np.newaxis]  # profiles of norm 1
    factors = scale * np.linalg.lstsq(scale * gram * scale.T, scale * products)[0]
    factors /= factors.sum(axis=0)
    distances = squares - 2 * np.sum(factors * products, axis=0) + np.sum(factors * (gram @ factors), axis=0)
    return factors, np.sqrt(np.maximum(distances, 0) / squares)
