"""Mixtures of Gaussians, whose density and score are known at every noise level.

    (1)  q(x) = sum_k w_k N(x; m_k, v_k),   score = grad log q = sum_k r_k(x) (m_k - x) / v_k

with r_k(x) the probability that x is of component k. Noise keeps the form: s x_0 + n eps has the means s m_k and the
variances s^2 v_k + n^2.
"""

from collections.abc import Sequence

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError


class Mixture:
    """A mixture of K round Gaussians in d dimensions, equation (1).

    Args:
        weights: (K,), positive; they are divided by their sum.
        means: (K, d).
        variances: of each component in every dimension, (K,), not negative; 0 = a point, which has a density only once
            noise is added.

    Raises:
        InputError: arrays that do not fit each other, or values out of range.

    Example:
        >>> mixture = kddpm.toy.Mixture([1, 3], [[-1.0, 0.0], [1.0, 0.0]], [0.01, 0.04])
        >>> mixture.noised(signal=0.6, noise=0.8).score(x)
    """

    def __init__(
        self,
        weights: Sequence[float] | np.ndarray,
        means: Sequence[Sequence[float]] | np.ndarray,
        variances: Sequence[float] | np.ndarray,
    ):
        self.weights, self.means = np.array(weights, np.float64), np.array(means, np.float64)
        self.variances = np.array(variances, np.float64)
        if self.means.ndim != 2 or not self.weights.shape == self.variances.shape == self.means.shape[:1]:
            shapes = f"shapes {self.weights.shape}, {self.means.shape}, {self.variances.shape}"
            raise InputError("weights", "must be (K,), with `means` (K, d) and `variances` (K,)", shapes)
        if not np.all(self.weights > 0):
            raise InputError("weights", "must be positive", weights)
        if not np.all(self.variances >= 0):
            raise InputError("variances", "must be at least 0", variances)
        self.weights /= self.weights.sum()

    def noised(self, signal: float, noise: float) -> "Mixture":
        """Return the distribution of signal x_0 + noise eps."""
        return Mixture(self.weights, signal * self.means, signal**2 * self.variances + noise**2)

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Draw points, float64 (count, d)."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), arguments.count("count", count), p=self.weights)
        return self.means[k] + np.sqrt(self.variances[k])[:, np.newaxis] * rng.normal(size=(count, self.means.shape[1]))

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return log q(x) of points (N, d), in nats, summed over dimensions, (N,).

        Raises:
            InputError: here and below: points of another shape, or a component without variance.
        """
        return np.logaddexp.reduce(self._log_terms(x), axis=1)

    def score(self, x: np.ndarray) -> np.ndarray:
        """Return the gradient of log q at points (N, d), (N, d)."""
        shares = self.shares(x)
        pulls = (self.means - x[:, np.newaxis]) / self.variances[:, np.newaxis]
        return np.sum(shares[..., np.newaxis] * pulls, axis=1)

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Return the probability of every component given points (N, d), (N, K)."""
        terms = self._log_terms(x)
        return np.exp(terms - np.logaddexp.reduce(terms, axis=1, keepdims=True))

    def _log_terms(self, x):
        """log w_k N(x; m_k, v_k), (N, K)."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise InputError("x", f"must be points (N, {self.means.shape[1]})", f"shape {x.shape}")
        if not np.all(self.variances > 0):
            raise InputError("variances", "must be positive for a density; `noised` adds to them", self.variances)
        squares = np.sum((x[:, np.newaxis] - self.means) ** 2, axis=-1)
        normal = -squares / (2 * self.variances) - self.means.shape[1] / 2 * np.log(2 * np.pi * self.variances)
        return np.log(self.weights) + normal
