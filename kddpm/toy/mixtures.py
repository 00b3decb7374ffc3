"""Mixtures of Gaussians, whose density and score are known at every noise level.

    (1)  q(x) = sum_k w_k N(x; m_k, v_k),   score = grad log q = sum_k r_k(x) (m_k - x) / v_k

with r_k(x) the probability that x is of component k. Noise keeps the form: s x_0 + n eps has the means s m_k and the
variances s^2 v_k + n^2.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Config, Tensor
from kddpm.theory.process import at_t
from kddpm.theory.schedules import NoiseSchedule


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


@keras.saving.register_keras_serializable("kddpm")
class MixtureNetwork(keras.Model):
    """The optimal network for data from a mixture, without weights: it predicts E[eps | x_t].

        E[x_0 | x_t] = sum_k r_k(x_t) (m_k + s v_k / (s^2 v_k + n^2) (x_t - s m_k))

    with s, n and r_k of x_t, as above. With the pictures of a data set as means it is what a network of unlimited size
    learns from them: it generates these pictures again, with noise of variance v.

    Args:
        image_shape: (H, W, C), of H W C = d numbers.
        schedule: a `NoiseSchedule` with timesteps 0 .. T - 1.
        mixture: a `Mixture` in d dimensions.

    Raises:
        InputError: the mixture has another number of dimensions, or the schedule is respaced.
    """

    num_classes = None

    def __init__(self, image_shape, schedule: NoiseSchedule, mixture: Mixture, **kwargs):
        super().__init__(**kwargs)
        self.image_shape = tuple(image_shape)
        if mixture.means.shape[1] != np.prod(self.image_shape):
            raise InputError("mixture", f"must have {np.prod(self.image_shape)} dimensions", mixture.means.shape[1])
        if not np.array_equal(schedule.timesteps, np.arange(schedule.num_timesteps)):
            raise InputError("schedule", "must name its steps 0 .. T - 1", "a respaced schedule")
        self.schedule, self.mixture = schedule, mixture
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool = False, seed: Tensor = None) -> Tensor:
        """Return the prediction for [x_t, t], computed in float64.

        Args:
            inputs: x_t float (B, H, W, C), t int (B,).
            training: not used.
            seed: not used.

        Returns:
            float32 (B, H, W, C), eps.
        """
        x_t, t = inputs
        means, variances = self.mixture.means, self.mixture.variances
        x = ops.reshape(ops.cast(x_t, "float64"), (-1, means.shape[1]))
        signal, noise = (at_t(np.sqrt(a), t, x) for a in (self.schedule.alpha_bars, self.schedule.one_minus_alpha_bars))
        spread = signal**2 * variances + noise**2  # (B, K)
        squares = (
            ops.sum(x**2, axis=1, keepdims=True) - 2 * signal * (x @ means.T) + signal**2 * np.sum(means**2, axis=1)
        )
        shares = ops.softmax(
            np.log(self.mixture.weights) - squares / (2 * spread) - means.shape[1] / 2 * ops.log(spread)
        )
        pulled = shares * signal * variances / spread  # how far each component follows x_t
        x_0 = (shares - signal * pulled) @ means + ops.sum(pulled, axis=1, keepdims=True) * x
        return ops.cast(ops.reshape((x - signal * x_0) / noise, (-1, *self.image_shape)), "float32")

    def get_config(self) -> Config:
        """Return the arguments of `__init__`, with schedule and mixture as their configurations."""
        mixture = {name: getattr(self.mixture, name).tolist() for name in ("weights", "means", "variances")}
        schedule = self.schedule.get_config()
        return {**super().get_config(), "image_shape": self.image_shape, "schedule": schedule, "mixture": mixture}

    @classmethod
    def from_config(cls, config: Config) -> "MixtureNetwork":
        """Return the network whose `get_config` returned `config`."""
        schedule, mixture = NoiseSchedule.from_config(config["schedule"]), Mixture(**config["mixture"])
        return cls(**{**config, "schedule": schedule, "mixture": mixture})
