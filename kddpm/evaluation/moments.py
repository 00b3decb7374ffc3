"""Mean and covariance of features that come a batch at a time, and in groups, for errors of what is computed from them.

Batches are merged as in Chan, Golub & LeVeque 1983, in float64:

    d = m_b - m_a,   m = m_a + d n_b / n,   S = S_a + S_b + d d^T n_a n_b / n,   n = n_a + n_b          (1)

with S the sum of squares about the mean; the covariance is S / (n - 1).
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from kddpm.base.errors import InputError

GROUPS = 10  # into which pictures are dealt


@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of features.

    Attributes:
        count: number of pictures n.
        mean: (D,).
        squares: sums of squares and products about the mean, S (D, D).
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """S / (n - 1), (D, D).

        Raises:
            InputError: fewer than two pictures.
        """
        if self.count < 2:
            raise InputError("features", "must be of two pictures or more for a covariance", self.count)
        return self.squares / (self.count - 1)

    def __add__(self, other: "Moments") -> "Moments":
        if not self.count or not other.count:
            return other if other.count else self
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        squares = self.squares + other.squares + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, squares)


def of(features: np.ndarray) -> Moments:
    """Return the moments of features (N, D), N >= 0."""
    features = np.asarray(features, np.float64)
    if not len(features):
        size = features.shape[1]
        return Moments(0, np.zeros(size), np.zeros((size, size)))
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts together, of which there is at least one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def in_groups(batches: Iterable[np.ndarray], classes: int = 1) -> list[Moments]:
    """Return the moments of `GROUPS` groups of pictures, to which rounds of all classes are dealt in turn.

    Args:
        batches: features (n, D) of consecutive pictures; no more than one batch is held.
        classes: number of classes, if those of pictures follow each other in turn; 1 = in no order. Dealt singly, the
            pictures of a group could all be of one class.

    Raises:
        InputError: no batch.
    """
    groups: list[Moments] = []
    first = 0
    for batch in batches:
        group = (first + np.arange(len(batch))) // classes % GROUPS
        parts = [of(batch[group == k]) for k in range(GROUPS)]
        groups = [one + other for one, other in zip(groups, parts, strict=True)] if groups else parts
        first += len(batch)
    if not groups:
        raise InputError("features", "must be of two pictures or more", "none")
    return groups
