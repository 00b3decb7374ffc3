"""The forward process of a DDPM and its consequences in closed form (Ho et al. 2020, sections 2 and 3).

    (1)  q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t)                                            (Ho, eq. 2)
    (2)  q(x_t | x_0)     = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t)                                      (Ho, eq. 4)
         x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,  eps ~ N(0, 1)
    (3)  q(x_{t-1} | x_t, x_0) = N(mu, posterior variance),  mu = c0_t x_0 + ct_t x_t                      (Ho, eq. 6-7)
    (4)  v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0                           (Salimans & Ho 2022, section 4)
    (5)  score = grad log q(x_t | x_0) = -eps / sqrt(1 - alpha_bar_t)                     (Song et al. 2021, section 3)
    (6)  p(x_{t-1} | x_t) = N(mu(x_0'), sigma_t^2),  x_0' from the network's output                    (Ho, section 3.2)

Given x_t and t, each of eps, x_0, mu, v and score determines the others. Every conversion goes through x_0 or eps,
whose relation is (2). The functions are plain `keras.ops` and take tensors of any rank with the batch first.
"""

import numpy as np
from keras import ops

from kddpm.base.types import Tensor
from kddpm.theory import parametrization
from kddpm.theory.parametrization import Objective
from kddpm.theory.schedules import NoiseSchedule

_FAR_NATS = 20.0  # how far a learned log-variance may leave its range


class GaussianDiffusion:
    """Equations (1) to (6) for one schedule.

    Throughout, `x_0`, `x_t`, `noise` and predictions are float tensors (B, ...), `t` is an integer tensor (B,) of
    0-based steps, and a result has the shape of `x_t`. Arithmetic is float32, or float64 where the first argument is
    float64; the other arguments and the float64 tables are cast to it.

    Args:
        schedule: a `NoiseSchedule`.

    Example:
        >>> diffusion = kddpm.GaussianDiffusion(kddpm.schedules.linear())
        >>> x_t = diffusion.q_sample(x_0, t, noise)
        >>> diffusion.x0_from_eps(x_t, t, noise)  # x_0 again
    """

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule
        self._sqrt_alpha_bars = np.sqrt(schedule.alpha_bars)
        self._sqrt_one_minus_alpha_bars = np.sqrt(schedule.one_minus_alpha_bars)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t from x_0 and standard normal noise, equation (2)."""
        x_0, noise = _same_dtype(x_0, noise)
        return at_t(self._sqrt_alpha_bars, t, x_0) * x_0 + at_t(self._sqrt_one_minus_alpha_bars, t, x_0) * noise

    def q_mean_variance(self, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (B, ...) and variance (B, 1, ...) of q(x_t | x_0), equation (2)."""
        x_0 = as_float(x_0)
        return at_t(self._sqrt_alpha_bars, t, x_0) * x_0, at_t(self.schedule.one_minus_alpha_bars, t, x_0)

    def q_step(self, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t from x_{t-1} and standard normal noise, equation (1)."""
        x_prev, noise = _same_dtype(x_prev, noise)
        return (
            at_t(np.sqrt(self.schedule.alphas), t, x_prev) * x_prev
            + at_t(np.sqrt(self.schedule.betas), t, x_prev) * noise
        )

    def q_step_mean_log_variance(self, x_prev: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (B, ...) and log-variance (B, 1, ...) of q(x_t | x_{t-1}), equation (1)."""
        x_prev = as_float(x_prev)
        return at_t(np.sqrt(self.schedule.alphas), t, x_prev) * x_prev, at_t(np.log(self.schedule.betas), t, x_prev)

    def posterior_mean_variance(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0), equation (3)."""
        return self.mu_from_x0(x_t, t, x_0), at_t(self.schedule.posterior_variances, t, as_float(x_t))

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t), equation (2)."""
        x_t, eps = _same_dtype(x_t, eps)
        return (x_t - at_t(self._sqrt_one_minus_alpha_bars, t, x_t) * eps) / at_t(self._sqrt_alpha_bars, t, x_t)

    def eps_from_x0(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), equation (2)."""
        x_t, x_0 = _same_dtype(x_t, x_0)
        return (x_t - at_t(self._sqrt_alpha_bars, t, x_t) * x_0) / at_t(self._sqrt_one_minus_alpha_bars, t, x_t)

    def mu_from_x0(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """mu = c0_t x_0 + ct_t x_t, equation (3)."""
        x_t, x_0 = _same_dtype(x_t, x_0)
        return (
            at_t(self.schedule.posterior_coefs_x0, t, x_t) * x_0 + at_t(self.schedule.posterior_coefs_xt, t, x_t) * x_t
        )

    def x0_from_mu(self, x_t: Tensor, t: Tensor, mu: Tensor) -> Tensor:
        """x_0 = (mu - ct_t x_t) / c0_t, equation (3)."""
        x_t, mu = _same_dtype(x_t, mu)
        return (mu - at_t(self.schedule.posterior_coefs_xt, t, x_t) * x_t) / at_t(
            self.schedule.posterior_coefs_x0, t, x_t
        )

    def v_from_x0(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """v = (sqrt(alpha_bar_t) x_t - x_0) / sqrt(1 - alpha_bar_t), equations (2) and (4)."""
        x_t, x_0 = _same_dtype(x_t, x_0)
        return (at_t(self._sqrt_alpha_bars, t, x_t) * x_t - x_0) / at_t(self._sqrt_one_minus_alpha_bars, t, x_t)

    def x0_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v, equations (2) and (4)."""
        x_t, v = _same_dtype(x_t, v)
        return at_t(self._sqrt_alpha_bars, t, x_t) * x_t - at_t(self._sqrt_one_minus_alpha_bars, t, x_t) * v

    def score_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """score = -eps / sqrt(1 - alpha_bar_t), equation (5)."""
        eps = _same_dtype(x_t, eps)[1]
        return -eps / at_t(self._sqrt_one_minus_alpha_bars, t, eps)

    def eps_from_score(self, x_t: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """eps = -sqrt(1 - alpha_bar_t) score, equation (5)."""
        score = _same_dtype(x_t, score)[1]
        return -at_t(self._sqrt_one_minus_alpha_bars, t, score) * score

    def x0_from(self, x_t: Tensor, t: Tensor, output: Tensor, prediction: str) -> Tensor:
        """Return x_0 from the output of a network with one of the `parametrization.PREDICTIONS`."""
        x_t, output = _same_dtype(x_t, output)
        a, b = self._x0_coefficients(t, x_t, prediction)
        return a * x_t + b * output

    def from_x0(self, x_t: Tensor, t: Tensor, x_0: Tensor, prediction: str) -> Tensor:
        """Return the target at x_t of a network with one of the `parametrization.PREDICTIONS`; inverts `x0_from`."""
        x_t, x_0 = _same_dtype(x_t, x_0)
        a, b = self._x0_coefficients(t, x_t, prediction)
        return (x_0 - a * x_t) / b

    def _x0_coefficients(self, t, x_t, prediction):
        """Return a and b of `kddpm.parametrization`, equation (1), to broadcast against x_t."""
        return (at_t(table, t, x_t) for table in parametrization.x0_coefficients(self.schedule, prediction))

    def log_variance(self, x_t: Tensor, t: Tensor, variance: str, fraction: Tensor = None) -> Tensor:
        """Return log sigma_t^2 of p(x_{t-1} | x_t), equation (6), as `kddpm.parametrization`, equation (3), defines it.

        Args:
            x_t: float (B, ...); only its dtype and rank matter.
            t: int (B,).
            variance: "small", "large" or "learned".
            fraction: (B, ..., C), for a learned variance: the network's other channels, -1 = the posterior's, 1 = beta.

        Returns:
            (B, 1, ..., 1), or the shape of `fraction`.
        """
        x_t = as_float(x_t)
        if variance != "learned":
            return at_t(parametrization.log_variances(self.schedule, variance), t, x_t)
        low, high = (at_t(table, t, x_t) for table in parametrization.log_variance_range(self.schedule))
        return learned_log_variance(ops.cast(fraction, ops.dtype(x_t)), low, high)

    def p_mean_log_variance(
        self, x_t: Tensor, t: Tensor, predicted: Tensor, fraction: Tensor, objective: Objective, clip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of p(x_{t-1} | x_t), equation (6).

        Args:
            x_t: float (B, ..., C).
            t: int (B,).
            predicted: the network's prediction, (B, ..., C).
            fraction: for a learned variance, (B, ..., C), else None; `split_output` returns both.
            objective: the meaning of both.
            clip: whether the predicted x_0 is clipped to [-1, 1].

        Returns:
            Mean (B, ..., C), and log-variance, which broadcasts against it.
        """
        x_0 = self.x0_from(x_t, t, predicted, objective.prediction)
        if clip:
            x_0 = ops.clip(x_0, -1.0, 1.0)
        return self.mu_from_x0(x_t, t, x_0), self.log_variance(x_t, t, objective.variance, fraction)


def learned_log_variance(fraction: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the log-variance from `low` to `high` as `fraction`, the network's other channels, goes from -1 to 1.

    This is equation (3) of `kddpm.parametrization`, clipped 20 nats beyond, so that no variance leaves float32.
    """
    log_variance = low + (fraction + 1) / 2 * (high - low)
    return ops.clip(log_variance, low - _FAR_NATS, high + _FAR_NATS)


def split_output(output: Tensor, objective: Objective) -> tuple[Tensor, Tensor | None]:
    """Split a network's output into (prediction, fraction of a learned variance or None)."""
    return ops.split(output, 2, axis=-1) if objective.variance == "learned" else (output, None)


def as_float(x: Tensor) -> Tensor:
    """Return x as a float32 tensor, or a float64 x as it is."""
    x = ops.convert_to_tensor(x)
    return x if ops.dtype(x) == "float64" else ops.cast(x, "float32")


def _same_dtype(x, other):
    """Return both as tensors of x's dtype, float32 or float64."""
    x = as_float(x)
    return x, ops.cast(other, ops.dtype(x))


def at_t(table: np.ndarray, t: Tensor, x: Tensor) -> Tensor:
    """Return table[t] for a (T,) table and int (B,) t, in the dtype of x, as (B, 1, ..., 1) to broadcast against x."""
    values = ops.take(ops.convert_to_tensor(table.astype(ops.dtype(x))), t)
    return ops.reshape(values, (-1,) + (1,) * (len(x.shape) - 1))
