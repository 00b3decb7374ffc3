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
to the nearest that differs from them, of uint8 pixels by more than 3 grey levels. Pictures of the same distribution
that were never seen are that near with a chance of about q.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.evaluation.moments import Moments, merged

_BLOCK_VALUES = 2**22  # of a block of distances or kernels
_MOST_ROWS = 1024  # whose nearest others are looked for together
_ROUNDING = 1e-12  # of a squared distance, over the squares that it is the difference of
_SAME_IMAGE = 3.0  # grey levels, root mean square: what compression or a change of size leaves of one image
MOST_COMPARED = 10_000  # training images whose nearest other is looked for
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
    return FrechetReference(b).distance(a)


class FrechetReference:
    """One side of many Frechet distances: the root of its covariance is taken once.

    Args:
        moments: of the real images.

    Raises:
        InputError: features of fewer than two pictures, or that are not finite.
    """

    def __init__(self, moments: Moments):
        self._mean, self._trace = moments.mean, np.trace(moments.covariance)
        if not np.isfinite(moments.squares).all():
            raise InputError("features", "must be finite", "NaN or infinite values")
        values, vectors = np.linalg.eigh(moments.covariance)
        self._root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T

    def distance(self, moments: Moments) -> float:
        """Return the distance of other moments, as `frechet_distance`."""
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

    def of_groups(self, groups: Sequence[Moments]) -> "Frechet":
        """Return the distance of pictures in groups, as `frechet`."""
        count = arguments.count("groups", len(groups), 2)
        value = self.distance(merged(groups))
        sizes = [group.count for group in groups]
        if min(sizes) < 2 or 2 * min(sizes) <= max(sizes):
            return Frechet(value)
        left_out = np.array([self.distance(merged([*groups[:k], *groups[k + 1 :]])) for k in range(count)])
        # The jackknife of groups that differ in size (Busing et al. 1999): the bias of order 1 / N cancels.
        parts = merged(groups).count / np.array(sizes)
        pseudo = parts * value - (parts - 1) * left_out
        mean = count * value - ((1 - 1 / parts) * left_out).sum()
        error = math.sqrt(((pseudo - mean) ** 2 / (parts - 1)).mean())
        halves = [merged(groups[first::2]) for first in (0, 1)]
        if min(half.count for half in halves) <= 2 * len(self._mean):
            return Frechet(value, error)
        return Frechet(value, error, at_infinity=2 * value - sum(map(self.distance, halves)) / 2)


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
    return FrechetReference(reference).of_groups(groups)


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
    return KernelReference(b).distance(a)


class KernelReference:
    """One side of many kernel distances: the sums over its own pairs are taken once.

    Args:
        features: (N, D), N >= 3, of the real images.

    Raises:
        InputError: too few features, or some that are not finite.
    """

    def __init__(self, features: np.ndarray):
        self._features = _checked(features, least=3)
        self._rows = _sums_off(self._features)

    def distance(self, features: np.ndarray) -> Estimate:
        """Return the distance of other features (M, D), as `kernel_distance`."""
        a, b = _checked(features, least=3, like=self._features), self._features
        rows_a, rows_b = _sums_off(a), self._rows
        cross_a, cross_b = _kernel_sums(a, b)
        value = _mean_off(rows_a) + _mean_off(rows_b) - 2 * cross_a.sum() / (len(a) * len(b))
        without_a = _without_each(rows_a, cross_a, len(b)) + _mean_off(rows_b)
        without_b = _without_each(rows_b, cross_b, len(a)) + _mean_off(rows_a)
        variance = sum((len(w) - 1) * w.var() for w in (without_a, without_b))
        return Estimate(float(value), math.sqrt(variance))


def _sums_off(x) -> np.ndarray:
    """Return sum_{j != i} k(x_i, x_j) of every i."""
    return _kernel_sums(x, x)[0] - (_squares(x) / x.shape[1] + 1) ** 3


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
    return Balls(real, neighbours).precision_recall(generated)


class Balls:
    """Pictures with a ball around each, whose radii are measured once.

    Args:
        features: (N, D).
        neighbours: k: a ball reaches to the k-th nearest other.

    Raises:
        InputError: no more than k pictures, or features that are not finite.
    """

    def __init__(self, features: np.ndarray, neighbours: int = 3):
        self._neighbours = arguments.count("neighbours", neighbours)
        self._features = _checked(features, least=self._neighbours + 1)
        self._squared_radii = nearest_others(self._features, self._neighbours)

    def precision_recall(self, generated: np.ndarray) -> PrecisionRecall:
        """Return precision and recall of generated pictures, whose features are (M, D), where these are real."""
        others = Balls(_checked(generated, self._neighbours + 1, like=self._features), self._neighbours)
        return PrecisionRecall(share(self._contain(others)), share(others._contain(self)))

    def _contain(self, others: "Balls") -> np.ndarray:
        """Return which centres of others lie in any of these balls."""
        inside = np.empty(len(others._features), bool)
        for rows, squared in _squared_distances(others._features, self._features):
            inside[rows] = (squared <= self._squared_radii).any(axis=1)
        return inside


def nearest_others(features: np.ndarray, k: int = 1) -> np.ndarray:
    """Return the squared distance of each picture to its k-th nearest other, (N,).

    Args:
        features: (N, D), N > k.
        k: 1 = the nearest.
    """
    return _nearest(features, features, k + 1)  # the nearest is the picture itself


def _nearest(a, b, k=1, beyond=None) -> np.ndarray:
    """Return the squared distance of each of `a` to its k-th nearest of `b`, which is read once for many of `a`.

    Of `b` what is no farther than the squared distance `beyond`, or the same but for rounding, is passed over; infinity
    where all is.
    """
    a, b = (each.reshape(len(each), math.prod(each.shape[1:])) for each in (a, b))
    result = np.empty(len(a))
    for rows in _blocks(len(a), max(a.shape[1], _BLOCK_VALUES // _MOST_ROWS)):
        block = a[rows].astype(np.float64)
        nearest = np.full((len(block), k), np.inf)
        for columns in _blocks(len(b), max(b.shape[1], len(block))):
            others = b[columns].astype(np.float64)
            squared = _squared(block, others)
            if beyond is not None:
                rounding = _ROUNDING * (_squares(block)[:, None] + _squares(others))
                squared[squared <= np.maximum(rounding, beyond)] = np.inf
            nearest = np.partition(np.concatenate([nearest, squared], axis=1), k - 1, axis=1)[:, :k]
        result[rows] = nearest.max(axis=1)
    return result


@dataclasses.dataclass(frozen=True)
class Copies:
    """How many pictures are copies of training images.

    Attributes:
        rate: share of the pictures that are.
        chance: the share expected of pictures that were never seen: measured on held-out images, else on the training
            images, each beside all others, which is q where none recurs. Twice that, which is too much, where mirror
            images count.
        distance: the distance below which a picture counts, root mean square over its dimensions.
    """

    rate: Estimate
    chance: Estimate
    distance: float


def copies(
    generated: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray | None = None,
    quantile: float = COPY_SHARE,
    *,
    mirrored: bool = False,
    most: int = MOST_COMPARED,
) -> Copies:
    """Return how many pictures are nearer to a training image than training images are to each other.

    Args:
        generated: features or pixels (M, D).
        train: those of the images that the model was trained on, (N, D), N >= 2.
        held_out: those of other real images, (L, D), for the chance level.
        quantile: q of the module's docstring, in (0, 1).
        mirrored: whether a mirror image of a training image is a copy too, as of a network that was trained on both;
            all must then be images (N, H, W, C).
        most: training images whose nearest other is looked for, evenly over all.

    Raises:
        InputError: features of different sizes, or too few; a quantile out of range.
    """
    return Originals(train, held_out, quantile, mirrored=mirrored, most=most).copies(generated)


class Originals:
    """Training images of which many sets of pictures may have copies: how near a copy is to one is measured once.

    Args:
        train: as in `copies`.
        held_out: the same.
        quantile: the same.
        mirrored: the same.
        most: the same.

    Raises:
        InputError: as in `copies`.
    """

    def __init__(
        self,
        train: np.ndarray,
        held_out: np.ndarray | None = None,
        quantile: float = COPY_SHARE,
        *,
        mirrored: bool = False,
        most: int = MOST_COMPARED,
    ):
        if not 0 < arguments.number("quantile", quantile) < 1:
            raise InputError("quantile", "must lie between 0 and 1", quantile)
        self._train = _checked(train, least=1, are_pixels=True)
        arguments.count("train", len(self._train), 2)
        if mirrored and self._train.ndim != 4:
            raise InputError("train", "must be images (N, H, W, C) to be mirrored", self._train.shape)
        self._is_mirrored = mirrored
        # An image that is there twice, or nearly, says nothing of how near others are.
        same = _SAME_IMAGE**2 * math.prod(self._train.shape[1:]) if self._train.dtype == np.uint8 else 0.0
        last = len(self._train) - 1
        some = self._train[np.linspace(0, last, min(last + 1, most)).round().astype(int)]
        nearest = _nearest(some, self._train, 2)  # the nearest is the image itself
        recurs = nearest <= np.maximum(same, 2 * _ROUNDING * _squares(some.reshape(len(some), -1).astype(np.float64)))
        distinct = nearest.copy()
        distinct[recurs] = _nearest(some[recurs], self._train, beyond=same)
        distinct[np.isinf(distinct)] = 0  # all images are the same
        self._limit = float(np.quantile(distinct, quantile))
        # An unseen picture may well be one of the images that recur.
        chance = float((nearest <= self._limit).mean()) if recurs.any() else quantile
        by_chance = min(2 * chance, 1.0) if mirrored else chance  # two chances, of which both may be the same
        self._chance = Estimate(by_chance) if held_out is None else self._rate(held_out)

    def copies(self, generated: np.ndarray) -> Copies:
        """Return how many of the generated pictures (M, D) are copies, as `copies`."""
        distance = math.sqrt(self._limit / math.prod(self._train.shape[1:]))
        return Copies(self._rate(generated), self._chance, distance)

    def _rate(self, pictures) -> Estimate:
        found = _checked(pictures, least=1, like=self._train, are_pixels=True)
        is_copy = _nearest(found, self._train) <= self._limit
        if self._is_mirrored:
            is_copy |= _nearest(found[:, :, ::-1], self._train) <= self._limit
        return share(is_copy)


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
            squared[:, columns] = _squared(block, b[columns].astype(np.float64))
        yield rows, squared


def _squared(a, b):
    """Return the squared distances of all rows of `a` to all of `b`, both float64."""
    return np.maximum(_squares(a)[:, None] + _squares(b) - 2 * a @ b.T, 0)


def _blocks(count: int, width: int):
    """Yield slices of so many rows that a block of that width has about `_BLOCK_VALUES` values."""
    size = max(1, _BLOCK_VALUES // max(width, 1))
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _checked(features, least: int, like: np.ndarray | None = None, are_pixels: bool = False) -> np.ndarray:
    """Return features as an array (N, D), float64.

    Args:
        features: to check.
        least: smallest N.
        like: features that they are compared with, None = not yet known.
        are_pixels: whether they may be images (N, ...) too, which stay uint8 if they are.

    Raises:
        InputError: too few, not finite, or of another D.
    """
    x = np.asarray(features)
    x = x if are_pixels and x.dtype == np.uint8 else np.asarray(x, np.float64)
    if x.ndim < 2 or (x.ndim > 2 and not are_pixels) or len(x) < least:
        raise InputError("features", f"must be (N, D), N >= {least}", x.shape)
    if x.dtype != np.uint8 and not np.isfinite(x).all():
        raise InputError("features", "must be finite", "NaN or infinite values")
    if like is not None and x.shape[1:] != like.shape[1:]:
        raise InputError("features", f"must have {like.shape[1:]} values a picture", x.shape[1:])
    return x
