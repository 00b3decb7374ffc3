"""The forward process of a DDPM and what follows from it in closed form (Ho et al. 2020, sections 2 and 3).

    (1)  q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t)                                            (Ho, eq. 2)
    (2)  q(x_t | x_0)     = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t)                                      (Ho, eq. 4)
         x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,  eps ~ N(0, 1)
    (3)  q(x_{t-1} | x_t, x_0) = N(mu, posterior variance),  mu = c0_t x_0 + ct_t x_t                      (Ho, eq. 6-7)
    (4)  v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0                           (Salimans & Ho 2022, section 4)
    (5)  score = grad log q(x_t | x_0) = -eps / sqrt(1 - alpha_bar_t)                     (Song et al. 2021, section 3)

Given x_t and t, each of eps, x_0, mu, v and score determines the others. Every conversion goes through x_0 or eps,
whose relation is (2). The functions are plain `keras.ops` and take tensors of any rank with the batch first.
"""

import numpy as np
from keras import ops

from kddpm.schedules import NoiseSchedule


class GaussianDiffusion:
    """Equations (1) to (5) for one schedule.

    Throughout, `x_0`, `x_t`, `noise` and predictions are float tensors (B, ...), `t` is an integer tensor (B,) of
    0-based steps, and a result has the shape of `x_t`. Arithmetic is float32, or float64 where the input is float64:
    the float64 tables are cast as they are read.

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

    def q_sample(self, x_0, t, noise):
        """x_t from x_0 and standard normal noise, equation (2)."""
        x_0, noise = _float(x_0), _float(noise)
        return _at(self._sqrt_alpha_bars, t, x_0) * x_0 + _at(self._sqrt_one_minus_alpha_bars, t, x_0) * noise

    def q_mean_variance(self, x_0, t):
        """Mean (B, ...) and variance (B, 1, ...) of q(x_t | x_0), equation (2)."""
        x_0 = _float(x_0)
        return _at(self._sqrt_alpha_bars, t, x_0) * x_0, _at(self.schedule.one_minus_alpha_bars, t, x_0)

    def q_step(self, x_prev, t, noise):
        """x_t from x_{t-1} and standard normal noise, equation (1)."""
        x_prev, noise = _float(x_prev), _float(noise)
        return (
            _at(np.sqrt(self.schedule.alphas), t, x_prev) * x_prev
            + _at(np.sqrt(self.schedule.betas), t, x_prev) * noise
        )

    def posterior_mean_variance(self, x_0, x_t, t):
        """Mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0), equation (3)."""
        return self.mu_from_x0(x_t, t, x_0), _at(self.schedule.posterior_variances, t, _float(x_t))

    def x0_from_eps(self, x_t, t, eps):
        """x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t), equation (2)."""
        x_t, eps = _float(x_t), _float(eps)
        return (x_t - _at(self._sqrt_one_minus_alpha_bars, t, x_t) * eps) / _at(self._sqrt_alpha_bars, t, x_t)

    def eps_from_x0(self, x_t, t, x_0):
        """eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), equation (2)."""
        x_t, x_0 = _float(x_t), _float(x_0)
        return (x_t - _at(self._sqrt_alpha_bars, t, x_t) * x_0) / _at(self._sqrt_one_minus_alpha_bars, t, x_t)

    def mu_from_x0(self, x_t, t, x_0):
        """mu = c0_t x_0 + ct_t x_t, equation (3)."""
        x_t, x_0 = _float(x_t), _float(x_0)
        return _at(self.schedule.posterior_coefs_x0, t, x_t) * x_0 + _at(self.schedule.posterior_coefs_xt, t, x_t) * x_t

    def x0_from_mu(self, x_t, t, mu):
        """x_0 = (mu - ct_t x_t) / c0_t, equation (3)."""
        x_t, mu = _float(x_t), _float(mu)
        return (mu - _at(self.schedule.posterior_coefs_xt, t, x_t) * x_t) / _at(
            self.schedule.posterior_coefs_x0, t, x_t
        )

    def v_from_x0(self, x_t, t, x_0):
        """v = (sqrt(alpha_bar_t) x_t - x_0) / sqrt(1 - alpha_bar_t), equations (2) and (4)."""
        x_t, x_0 = _float(x_t), _float(x_0)
        return (_at(self._sqrt_alpha_bars, t, x_t) * x_t - x_0) / _at(self._sqrt_one_minus_alpha_bars, t, x_t)

    def x0_from_v(self, x_t, t, v):
        """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v, equations (2) and (4)."""
        x_t, v = _float(x_t), _float(v)
        return _at(self._sqrt_alpha_bars, t, x_t) * x_t - _at(self._sqrt_one_minus_alpha_bars, t, x_t) * v

    def score_from_eps(self, x_t, t, eps):
        """score = -eps / sqrt(1 - alpha_bar_t), equation (5)."""
        eps = _float(eps)
        return -eps / _at(self._sqrt_one_minus_alpha_bars, t, eps)

    def eps_from_score(self, x_t, t, score):
        """eps = -sqrt(1 - alpha_bar_t) score, equation (5)."""
        score = _float(score)
        return -_at(self._sqrt_one_minus_alpha_bars, t, score) * score


def _float(x):
    """A float32 tensor, or the float64 tensor that came."""
    x = ops.convert_to_tensor(x)
    return x if ops.dtype(x) == "float64" else ops.cast(x, "float32")


def _at(table: np.ndarray, t, x):
    """table[t] in the dtype of x, shaped (B, 1, ..., 1) to broadcast against x."""
    values = ops.take(ops.convert_to_tensor(table.astype(ops.dtype(x))), t)
    return ops.reshape(values, (-1,) + (1,) * (len(x.shape) - 1))
