"""How far pictures are from real ones, as float64 functions of features (N, D) or of their moments.

Frechet distance of two normal distributions (Dowson & Landau 1982; of Inception features: FID, Heusel et al. 2017):

    F = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))                                              (1)

Of N pictures it is too large by about c / N (Chong & Forsyth 2020); the line in 1 / N through the values of all
pictures and of half of them ends at infinitely many:

    F_inf = 2 F_N - F_{N/2}                                                                            (2)

With few pictures a feature the error is no line in 1 / N: eq. (2) is used where N / 2 > 2 D.

Kernel distance (KID, Binkowski et al. 2018), the unbiased estimate of the squared maximum mean discrepancy:

    K = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(x, y) = (x . y / D + 1)^3                                                                        (3)

Precision and recall (Kynkaanniemi et al. 2019): a picture is realistic if it lies in the ball of any real one, which
reaches to the real one's k-th neighbour. Precision is the share of generated pictures in the balls of real ones, recall
the share of real pictures in the balls of generated ones.

Copies: a picture counts as a copy if it is nearer to a training image than all but a share q of the training images are
to their nearest other. Pictures of the same distribution that were never seen are that near with a chance of about q.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.evaluation.moments import Moments, merged

_BLOCK_VALUES = 2**22  # of a block of distances or kernels
_MOST_COMPARED = 10_000  # training images whose nearest other is looked for
COPY_SHARE = 0.01  # q above


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its sampling noise.

    Attributes:
        value: the number.
        standard_error: of the pictures that were drawn; NaN = unknown.
    """

    value: float
    standard_error: float = math.nan

    def __str__(self):
        return f"{self.value:.4g}" + (f" +- {self.standard_error:.2g}" if math.isfinite(self.standard_error) else "")


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the Frechet distance of two sets of features, eq. (1).

    Raises:
        InputError: features of different sizes, of fewer than two pictures, or that are not finite.
    """
    return _Reference(b).distance(a)


class _Reference:
    """One side of many Frechet distances: the root of its covariance is taken once."""

    def __init__(self, moments: Moments):
        self._mean, self._trace = moments.mean, np.trace(moments.covariance)
        if not np.isfinite(moments.squares).all():
            raise InputError("features", "must be finite", "NaN or infinite values")
        values, vectors = np.linalg.eigh(moments.covariance)
        self._root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T

    def distance(self, moments: Moments) -> float:
        if moments.mean.shape != self._mean.shape:
            raise InputError("features", f"must have {len(self._mean)} values a picture", len(moments.mean))
        if not np.isfinite(moments.squares).all():
            raise InputError("features", "must be finite", "NaN or infinite values")
        covariance = moments.covariance
        # tr (C_a C_b)^(1/2) = tr (R C_a R)^(1/2), with R R = C_b; the latter is symmetric.
        values = np.linalg.eigvalsh(self._root @ covariance @ self._root)
        step = moments.mean - self._mean
        cross = np.sqrt(np.maximum(values, 0)).sum()
        return float(max(step @ step + self._trace + np.trace(covariance) - 2 * cross, 0))


@dataclasses.dataclass(frozen=True)
class Frechet(Estimate):
    """A Frechet distance; `standard_error` is the jackknife's over groups of pictures, NaN = too few pictures for it.

    Attributes:
        at_infinity: what it would be of infinitely many pictures, eq. (2), NaN = too few; the reference is taken as it
            is.
    """

    at_infinity: float = math.nan


def frechet(groups: Sequence[Moments], reference: Moments) -> Frechet:
    """Return the Frechet distance of pictures in groups, its standard error and its limit.

    Args:
        groups: moments of G >= 2 groups of pictures (`moments.in_groups`). They tell errors only if all have two
            pictures or more, and more than half as many as the largest.
        reference: moments of the real images.

    Raises:
        InputError: as in `frechet_distance`, or too few groups.
    """
    count = arguments.count("groups", len(groups), 2)
    fixed = _Reference(reference)
    value = fixed.distance(merged(groups))
    sizes = [group.count for group in groups]
    if min(sizes) < 2 or 2 * min(sizes) <= max(sizes):
        return Frechet(value)
    left_out = np.array([fixed.distance(merged([*groups[:k], *groups[k + 1 :]])) for k in range(count)])
    error = math.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    halves = [merged(groups[first::2]) for first in (0, 1)]
    if min(half.count for half in halves) <= 2 * len(reference.mean):
        return Frechet(value, error)
    return Frechet(value, error, at_infinity=2 * value - sum(map(fixed.distance, halves)) / 2)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Return the kernel distance of two sets of features, eq. (3).

    The standard error is the jackknife's, over the pictures of both sets; where both are of one distribution, it is too
    large by up to sqrt(2).

    Args:
        a: (M, D), M >= 3.
        b: (N, D), N >= 3.

    Raises:
        InputError: features of different sizes, or too few.
    """
    a, b = _checked(a, b, least=3)
    rows_a, rows_b = (_kernel_sums(x, x)[0] - (_squares(x) / x.shape[1] + 1) ** 3 for x in (a, b))
    cross_a, cross_b = _kernel_sums(a, b)
    value = _mean_off(rows_a) + _mean_off(rows_b) - 2 * cross_a.sum() / (len(a) * len(b))
    without_a = _without_each(rows_a, cross_a, len(b)) + _mean_off(rows_b)
    without_b = _without_each(rows_b, cross_b, len(a)) + _mean_off(rows_a)
    variance = sum((len(w) - 1) * w.var() for w in (without_a, without_b))
    return Estimate(float(value), math.sqrt(variance))


def _kernel_sums(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Return sum_j k(a_i, b_j) of every i, and sum_i of every j."""
    over_b, over_a = np.empty(len(a)), np.zeros(len(b))
    for rows in _blocks(len(a), len(b)):
        kernel = (a[rows] @ b.T / a.shape[1] + 1) ** 3
        over_b[rows] = kernel.sum(axis=1)
        over_a += kernel.sum(axis=0)
    return over_b, over_a


def _squares(x) -> np.ndarray:
    return np.einsum("nd,nd->n", x, x)


def _mean_off(rows) -> float:
    return rows.sum() / (len(rows) * (len(rows) - 1))


def _without_each(rows, cross, others) -> np.ndarray:
    """Return the terms of eq. (3) that know a set, with each of its pictures left out in turn."""
    n = len(rows) - 1
    return (rows.sum() - 2 * rows) / (n * (n - 1)) - 2 * (cross.sum() - cross) / (n * others)


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, in 0 .. 1; standard errors as of independent pictures."""

    precision: Estimate
    recall: Estimate


def precision_recall(generated: np.ndarray, real: np.ndarray, neighbours: int = 3) -> PrecisionRecall:
    """Return precision and recall of generated pictures.

    Args:
        generated: features (M, D).
        real: features (N, D); as many as are generated makes the two comparable.
        neighbours: k, of the ball around each picture.

    Raises:
        InputError: features of different sizes, or no more than k pictures.
    """
    k = arguments.count("neighbours", neighbours)
    generated, real = _checked(generated, real, least=k + 1)
    inside_real = _in_any_ball(generated, real, nearest_others(real, k))
    inside_generated = _in_any_ball(real, generated, nearest_others(generated, k))
    return PrecisionRecall(share(inside_real), share(inside_generated))


def nearest_others(features: np.ndarray, k: int = 1, most: int | None = None) -> np.ndarray:
    """Return the squared distance of each picture to its k-th nearest other, (N,).

    Args:
        features: (N, D), N > k.
        k: 1 = the nearest.
        most: only of this many pictures, spread evenly over all; None = of all.
    """
    features = np.asarray(features)
    count = len(features)
    rows = np.linspace(0, count - 1, min(count, most or count)).round().astype(int)
    return _nearest(features[rows], features, k + 1)  # the nearest is the picture itself


def _nearest(a, b, k=1) -> np.ndarray:
    """Return the squared distance of each of `a` to its k-th nearest of `b`."""
    result = np.empty(len(a))
    for rows, squared in _squared_distances(a, b):
        result[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return result


def _in_any_ball(pictures, centres, squared_radii) -> np.ndarray:
    inside = np.empty(len(pictures), bool)
    for rows, squared in _squared_distances(pictures, centres):
        inside[rows] = (squared <= squared_radii).any(axis=1)
    return inside


@dataclasses.dataclass(frozen=True)
class Copies:
    """How many pictures are copies of training images.

    Attributes:
        rate: share of the pictures that are.
        chance: the share expected of pictures that were never seen: measured on held-out images, else q.
        distance: the distance below which a picture counts, root mean square over its dimensions.
    """

    rate: Estimate
    chance: Estimate
    distance: float


def copies(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray | None = None, quantile: float = COPY_SHARE
) -> Copies:
    """Return how many pictures are nearer to a training image than training images are to each other.

    Args:
        generated: features or pixels (M, D).
        train: those of the images that the model was trained on, (N, D), N >= 2.
        held_out: those of other real images, (L, D), for the chance level.
        quantile: q of the module's docstring, in (0, 1).

    Raises:
        InputError: features of different sizes, or too few; a quantile out of range.
    """
    if not 0 < arguments.number("quantile", quantile) < 1:
        raise InputError("quantile", "must lie between 0 and 1", quantile)
    generated, train = _checked(generated, train, least=1)
    arguments.count("train", len(train), 2)
    limit = float(np.quantile(nearest_others(train, most=_MOST_COMPARED), quantile))
    chance = Estimate(quantile)
    if held_out is not None:
        held_out, _ = _checked(held_out, train, least=1)
        chance = share(_nearest(held_out, train) <= limit)
    rate = share(_nearest(generated, train) <= limit)
    return Copies(rate, chance, math.sqrt(limit / math.prod(train.shape[1:])))


def share(hits: np.ndarray) -> Estimate:
    """Return the share of true values, with the standard error of independent draws."""
    p = float(np.mean(hits))
    return Estimate(p, math.sqrt(p * (1 - p) / len(hits)))


def _squared_distances(a, b):
    """Yield slices of `a`, and the squared distances of their rows to all of `b`."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    for rows in _blocks(len(a), max(len(b), a.shape[1])):
        block = a[rows].astype(np.float64)
        squared = np.empty((len(block), len(b)))
        for columns in _blocks(len(b), b.shape[1]):
            other = b[columns].astype(np.float64)
            squares = _squares(block)[:, None] + _squares(other)
            squared[:, columns] = np.maximum(squares - 2 * block @ other.T, 0)
        yield rows, squared


def _blocks(count: int, width: int):
    """Yield slices of so many rows that a block of that width has about `_BLOCK_VALUES` values."""
    size = max(1, _BLOCK_VALUES // max(width, 1))
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _checked(a, b, least):
    """Return features as arrays (N, D), float64 unless they are pixels, which are converted a block at a time."""
    a, b = (np.asarray(x) for x in (a, b))
    a, b = (x if x.dtype == np.uint8 else x.astype(np.float64) for x in (a, b))
    for x in (a, b):
        if x.ndim < 2 or len(x) < least:
            raise InputError("features", f"must be (N, D), N >= {least}", x.shape)
        if x.dtype != np.uint8 and not np.isfinite(x).all():
            raise InputError("features", "must be finite", "NaN or infinite values")
    if a.shape[1:] != b.shape[1:]:
        raise InputError("features", f"must have {b.shape[1:]} values a picture", a.shape[1:])
    return a, b
