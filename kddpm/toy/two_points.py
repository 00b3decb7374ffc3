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
    log_shares, means, variance = _components(np.array([arguments.number("x_t", x_t)]), beta, alpha_bar_prev)
    return Mixture(np.exp(log_shares[:, 0]), means, [variance, variance])


def gaussian_gap_nats(beta: float, alpha_bar_prev: float = 0.5) -> float:
    """Return E KL(q(x_{t-1} | x_t) || the normal of its mean and variance), over x_t, in nats, by quadrature.

    Args:
        beta: as in `reverse_conditional`.
        alpha_bar_prev: as in `reverse_conditional`.

    Raises:
        InputError: a number out of range.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    alpha_bar = alpha_bar_prev * (1 - beta)
    x_t = np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar) * nodes  # given x_0 = 1; for -1 all is mirrored
    log_shares, means, variance = _components(x_t, beta, alpha_bar_prev)
    shares = np.exp(log_shares)
    mean = np.sum(shares * means, axis=0)
    total = variance + np.sum(shares * (means - mean) ** 2, axis=0)
    x = means[..., np.newaxis] + np.sqrt(variance) * nodes  # (2, x_t, nodes)
    normals = -((x - means[:, np.newaxis, :, np.newaxis]) ** 2) / (2 * variance)
    log_q = np.logaddexp.reduce(log_shares[:, np.newaxis, :, np.newaxis] + normals) - np.log(variance) / 2
    log_normal = -((x - mean[:, np.newaxis]) ** 2) / (2 * total[:, np.newaxis]) - np.log(total[:, np.newaxis]) / 2
    return float(weights @ np.sum(shares * ((log_q - log_normal) @ weights), axis=0))


def _components(x_t, beta, alpha_bar_prev):
    """Log-probabilities and means of the two normals of equation (2), (2, N) each, and their variance, for x_t (N,)."""
    for name, value in (("beta", beta), ("alpha_bar_prev", alpha_bar_prev)):
        if not 0 < arguments.number(name, value) < 1:
            raise InputError(name, "must lie strictly between 0 and 1", value)
    schedule, signs = NoiseSchedule([1 - alpha_bar_prev, beta]), np.array([[1.0], [-1.0]])
    log_odds = 2 * np.sqrt(schedule.alpha_bars[1]) * x_t / schedule.one_minus_alpha_bars[1]
    means = schedule.posterior_coefs_xt[1] * x_t + signs * schedule.posterior_coefs_x0[1]
    return -np.logaddexp(0, -signs * log_odds), means, schedule.posterior_variances[1]
