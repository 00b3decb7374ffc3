"""Gaussian data in closed form.

Data N(mean, std^2) in every element need no training. With s = sqrt(alpha_bar_t), n^2 = 1 - alpha_bar_t
and w = s^2 std^2 + n^2, the variance of x_t, both x_0 and x_{t-1} are normal given x_t:

    (1)  E[eps | x_t] = n (x_t - s mean) / w
    (2)  Var[x_0 | x_t] = std^2 n^2 / w,   Var[x_{t-1} | x_t] = posterior variance + c0_t^2 Var[x_0 | x_t]

with c0_t of `kddpm.schedules`, equation (4). A network that outputs (1) and, as its learned variance, (2) is
optimal: its p(x_{t-1} | x_t) equals q(x_{t-1} | x_t). With a fixed variance sigma_t^2, p(x_{t-1} | x_t) is still
normal around a line in x_t, a_t x_t + b_t, so that from N(0, 1) at x_T a recursion gives the chain's own density:

    (3)  m' = a_t m + b_t,  v' = a_t^2 v + sigma_t^2                                   from t = T - 1 down to 0

and p(x_0) is the mass of N(m, v) in a pixel's bin.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kddpm.base.errors import InputError
from kddpm.base.types import Config, Tensor
from kddpm.theory import objectives, parametrization
from kddpm.theory.process import as_float, at_t
from kddpm.theory.schedules import NoiseSchedule

_NO_RANGE = 1e-12  # nats; narrower ranges of a log-variance are rounding


def gaussian_eps(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """Return E[eps | x_t] for data N(mean, std^2), equation (1).

    Args:
        schedule: a schedule of T steps.
        x_t: float (B, ...).
        t: int (B,).
        mean: mean of the data.
        std: standard deviation of the data.

    Returns:
        A tensor of the shape of x_t.
    """
    x_t = as_float(x_t)
    slopes = np.sqrt(schedule.one_minus_alpha_bars) / (schedule.alpha_bars * std**2 + schedule.one_minus_alpha_bars)
    return at_t(slopes, t, x_t) * (x_t - at_t(np.sqrt(schedule.alpha_bars) * mean, t, x_t))


def gaussian_x0(z: Tensor, log_snr: Tensor, mean: float, std: float) -> Tensor:
    """Return E[x_0 | z] for data N(mean, std^2) at any log SNR, as `kddpm.learned` takes a denoiser; from (1).

    Args:
        z: float (B, ...), of unit noise and signal: z = sqrt(sigmoid(log_snr)) x_0 + sqrt(sigmoid(-log_snr)) eps.
        log_snr: (B,).
        mean: mean of the data.
        std: standard deviation of the data.

    Returns:
        A tensor of the shape of z.
    """
    log_snr = ops.reshape(log_snr, (-1,) + (1,) * (len(z.shape) - 1))
    signal, noise = ops.sqrt(ops.sigmoid(log_snr)), ops.sqrt(ops.sigmoid(-log_snr))
    return mean + std**2 * signal / (std**2 * signal**2 + noise**2) * (z - signal * mean)


def gaussian_variances(schedule: NoiseSchedule, std: float) -> np.ndarray:
    """Return Var[x_{t-1} | x_t] for data N(mean, std^2) at every t, equation (2), (T,)."""
    of_x0 = std**2 / (schedule.alpha_bars * std**2 / schedule.one_minus_alpha_bars + 1)
    return schedule.posterior_variances + schedule.posterior_coefs_x0**2 * of_x0


def _fractions(schedule, std):
    """Return where in the range of a learned log-variance the best one lies, from -1 to 1, (T,); -1 in no range."""
    low, high = parametrization.log_variance_range(schedule)
    width = high - low
    width[width < _NO_RANGE] = np.inf
    return 2 * (np.log(gaussian_variances(schedule, std)) - low) / width - 1


@keras.saving.register_keras_serializable("kddpm")
class GaussianNetwork(keras.Model):
    """The optimal network for data N(mean, std^2), without weights: eps and variance by equations (1) and (2).

    Where the range of a learned variance is a point, as at T = 1, and where no signal is left, its variance is that.

    Args:
        image_shape: (H, W, C).
        schedule: a `NoiseSchedule` with timesteps 0 .. T - 1.
        mean: mean of the data, in [-1, 1].
        std: standard deviation of the data.
        learned_variance: whether to output (2) as well; without it, the variance is the model's choice.

    Raises:
        InputError: the schedule is respaced.

    Example:
        >>> network = kddpm.toy.GaussianNetwork((8, 8, 1), schedule, 0.0, 0.2)
        >>> model = kddpm.DiffusionModel(network, schedule, variance="learned", weighting="hybrid")
    """

    num_classes = None

    def __init__(
        self,
        image_shape,
        schedule: NoiseSchedule,
        mean: float,
        std: float,
        learned_variance: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not np.array_equal(schedule.timesteps, np.arange(schedule.num_timesteps)):
            raise InputError("schedule", "must name its steps 0 .. T - 1", "a respaced schedule")
        self.image_shape = tuple(image_shape)
        self.out_channels = (2 if learned_variance else 1) * self.image_shape[-1]
        self.schedule = schedule
        self.mean = mean
        self.std = std
        self.learned_variance = learned_variance
        self._fractions = _fractions(schedule, std)
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool = False, seed: Tensor = None) -> Tensor:
        """Return the prediction for [x_t, t].

        Args:
            inputs: x_t float (B, H, W, C), t int (B,).
            training: not used.
            seed: not used.

        Returns:
            float32 (B, H, W, 2 C): eps, then the position of the log-variance in its range, -1 to 1; or eps alone,
            (B, H, W, C).
        """
        x_t, t = inputs
        eps = gaussian_eps(self.schedule, x_t, t, self.mean, self.std)
        if not self.learned_variance:
            return eps
        return ops.concatenate([eps, ops.zeros_like(eps) + at_t(self._fractions, t, eps)], axis=-1)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`, with the schedule as its configuration."""
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "schedule": self.schedule.get_config(),
            "mean": self.mean,
            "std": self.std,
            "learned_variance": self.learned_variance,
        }

    @classmethod
    def from_config(cls, config: Config) -> "GaussianNetwork":
        """Return the network whose `get_config` returned `config`."""
        return cls(**{**config, "schedule": NoiseSchedule.from_config(config["schedule"])})


def gaussian_images(count: int, image_shape: Sequence[int], mean: float, std: float, seed: int = 0) -> np.ndarray:
    """Return images of independent normal pixels, rounded to uint8, (count, H, W, C)."""
    x = np.random.default_rng(seed).normal(mean, std, (count, *image_shape))
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def gaussian_chain_bits(
    schedule: NoiseSchedule, images: np.ndarray, mean: float, std: float, variance: str
) -> np.ndarray:
    """Return the exact bits per dimension of images under the chain with the best eps, equation (3), (N,).

    Args:
        schedule: a schedule of T steps.
        images: uint8 (N, ...).
        mean: mean of the data that the network knows.
        std: their standard deviation.
        variance: "small" or "large".
    """
    s, w = np.sqrt(schedule.alpha_bars), schedule.alpha_bars * std**2 + schedule.one_minus_alpha_bars
    gains = s * std**2 / w  # of E[x_0 | x_t], whose offset is mean (1 - gain s)
    slopes = schedule.posterior_coefs_x0 * gains + schedule.posterior_coefs_xt
    offsets = schedule.posterior_coefs_x0 * mean * (1 - gains * s)
    variances = np.exp(parametrization.log_variances(schedule, variance))
    m, v = 0.0, 1.0
    for t in range(schedule.num_timesteps - 1, -1, -1):
        m, v = slopes[t] * m + offsets[t], slopes[t] ** 2 * v + variances[t]
    x_0 = ops.convert_to_tensor(images.astype(np.float64) / 127.5 - 1, "float64")
    nats = -np.asarray(objectives.decoder_log_likelihood_nats(x_0, *ops.convert_to_tensor([m, math.log(v)], "float64")))
    return nats.reshape(len(images), -1).mean(axis=1) / math.log(2)
