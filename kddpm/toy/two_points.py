"""How nearly Gaussian the way back is, for data at two points, 1 and -1, with the same weight.

Write a = alpha_bar_{t-1}, alpha_bar_t = (1 - beta) a, and c, d and the posterior variance of `kddpm.schedules`,
equations (3) and (4). Given x_t, x_0 is 1 with the probability p, and x_{t-1} is a mixture of two normals:

    (1)  p = 1 / (1 + exp(-2 sqrt(alpha_bar_t) x_t / (1 - alpha_bar_t)))
    (2)  q(x_{t-1} | x_t) = p N(d x_t + c, v) + (1 - p) N(d x_t - c, v),   v the posterior variance

As beta shrinks so does c / sqrt(v), and (2) becomes one normal. What is left is its skewness: the divergence from the
normal of its mean and variance is beta^3 / 12 E[(log q)'''^2] to first order, the derivative that of log q(x_{t-1}).
"""

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.theory.schedules import NoiseSchedule
from kddpm.toy.mixtures import Mixture

_LEAST_LOG_SHARE = -700.0  # the exponential stays above 0
_NODES = 120  # of each Gauss-Hermite rule; 200 change no more than 1e-9 of the result at beta = 0.01


def reverse_conditional(x_t: float, beta: float, alpha_bar_prev: float = 0.5) -> Mixture:
    """Return q(x_{t-1} | x_t), equation (2).

    Args:
        x_t: the noisy point.
        beta: of the step from t - 1 to t, between 0 and 1.
        alpha_bar_prev: alpha_bar at t - 1, between 0 and 1.

    Raises:
        InputError: a number out of range.
    """
    schedule = _checked_steps(beta, alpha_bar_prev)
    log_shares, means = _components(np.array([arguments.number("x_t", x_t)]), schedule)
    weights = np.exp(np.maximum(log_shares[:, 0], _LEAST_LOG_SHARE))
    return Mixture(weights, means, np.repeat(schedule.posterior_variances[1], 2))


def gaussian_gap_nats(beta: float, alpha_bar_prev: float = 0.5) -> float:
    """Return E KL(q(x_{t-1} | x_t) || the normal of its mean and variance), over x_t, in nats, by quadrature.

    Args:
        beta: as in `reverse_conditional`.
        alpha_bar_prev: as in `reverse_conditional`.

    Raises:
        InputError: a number out of range.
    """
    schedule = _checked_steps(beta, alpha_bar_prev)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    x_t = np.sqrt(schedule.alpha_bars[1]) + np.sqrt(schedule.one_minus_alpha_bars[1]) * nodes  # for -1 it is mirrored
    log_shares, means = _components(x_t, schedule)
    shares, variance = np.exp(log_shares), schedule.posterior_variances[1]
    mean = np.sum(shares * means, axis=0)
    total = variance + np.sum(shares * (means - mean) ** 2, axis=0)
    x = means[..., np.newaxis] + np.sqrt(variance) * nodes  # (2, x_t, nodes)
    normals = -((x - means[:, np.newaxis, :, np.newaxis]) ** 2) / (2 * variance)
    log_q = np.logaddexp.reduce(log_shares[:, np.newaxis, :, np.newaxis] + normals) - np.log(variance) / 2
    log_normal = -((x - mean[:, np.newaxis]) ** 2) / (2 * total[:, np.newaxis]) - np.log(total[:, np.newaxis]) / 2
    return float(weights @ np.sum(shares * ((log_q - log_normal) @ weights), axis=0))


def _checked_steps(beta, alpha_bar_prev):
    """Return the schedule of t - 1 and t."""
    for name, value in (("beta", beta), ("alpha_bar_prev", alpha_bar_prev)):
        if not 0 < arguments.number(name, value) < 1:
            raise InputError(name, "must lie strictly between 0 and 1", value)
    return NoiseSchedule([1 - alpha_bar_prev, beta])


def _components(x_t, schedule):
    """Log-probabilities and means of the two normals of equation (2), (2, N) each, for x_t (N,)."""
    signs = np.array([[1.0], [-1.0]])
    log_odds = 2 * np.sqrt(schedule.alpha_bars[1]) * x_t / schedule.one_minus_alpha_bars[1]
    means = schedule.posterior_coefs_xt[1] * x_t + signs * schedule.posterior_coefs_x0[1]
    return -np.logaddexp(0, -signs * log_odds), means
