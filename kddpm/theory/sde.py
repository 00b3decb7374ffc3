"""Continuous time: a forward SDE, its reverse and the probability-flow ODE, as one family (Song et al. 2021b).

Data at time 0 become x_t = s(t) (x_0 + sigma(t) eps) at t in [0, 1], with sigma growing from 0:

    (1)  dx = f(t) x dt + g(t) dW,   f = s'/s,   g^2 = s^2 (sigma^2)'
    (2)  variance exploding:    s = 1,                       f = 0,                             g^2 = (sigma^2)'
    (3)  variance preserving:   s = 1 / sqrt(1 + sigma^2),   f = -beta / 2,   g^2 = beta = (sigma^2)' / (1 + sigma^2)

The two differ by the factor s alone: if x follows (3), y = x / s follows (2) with this sigma. In (3) s^2 is alpha_bar.

Other processes pass through the same densities q as (1). In the Fokker-Planck equation noise has the term
g^2/2 laplace q = div(q g^2/2 grad log q), which is that of the drift -g^2/2 grad log q; and Langevin dynamics change no
density. So an Euler step from t to t + h, forwards (h > 0) or backwards (h < 0), may be

    (4)  x' = x + h (f x - g^2/2 score) + delta score + sqrt(2 delta) z,   delta = lambda^2 g^2 |h| / 2

The first part is the probability-flow ODE, the rest a Langevin step. lambda = 0 is the ODE. lambda = 1 is, forwards,
Euler-Maruyama on (1), where the scores cancel; and backwards on the reverse SDE (Anderson 1982), with the drift
f x - g^2 score. Everything here is NumPy.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError

Score = Callable[[np.ndarray, float], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SDE:
    """Equations (1) to (3) for one course of the noise.

    Args:
        sigma_squared: sigma(t)^2, 0 at t = 0 and growing.
        growth: its derivative.
        preserving: whether the variance is preserved, (3), or explodes, (2).

    Example:
        >>> sde = kddpm.sde.linear()
        >>> sde.exploding().drift(0.5)
        0.0
    """

    sigma_squared: Callable[[float], float]
    growth: Callable[[float], float]
    preserving: bool = True

    def signal(self, t: float) -> float:
        """Return s(t)."""
        return 1 / math.sqrt(1 + self.sigma_squared(t)) if self.preserving else 1.0

    def noise(self, t: float) -> float:
        """Return s(t) sigma(t), the standard deviation of x_t given x_0."""
        return self.signal(t) * math.sqrt(self.sigma_squared(t))

    def drift(self, t: float) -> float:
        """Return f(t) of equation (1)."""
        return -self.growth(t) / (2 * (1 + self.sigma_squared(t))) if self.preserving else 0.0

    def diffusion_squared(self, t: float) -> float:
        """Return g(t)^2 of equation (1)."""
        return self.signal(t) ** 2 * self.growth(t)

    def exploding(self) -> "SDE":
        """Return the process of y = x / s, with the same sigma."""
        return dataclasses.replace(self, preserving=False)


def linear(beta_start: float = 0.1, beta_end: float = 20.0) -> SDE:
    """Return the variance preserving SDE whose beta(t) rises linearly (Song et al. 2021b, appendix C).

    `schedules.linear(T, beta_start / T, beta_end / T)` is its discrete form.

    Raises:
        InputError: a beta that is not positive.
    """
    for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not arguments.number(name, value) > 0:
            raise InputError(name, "must be positive", value)

    def beta(t):
        return beta_start + t * (beta_end - beta_start)

    def integral(t):
        return t * (beta_start + beta(t)) / 2

    return SDE(lambda t: math.expm1(integral(t)), lambda t: beta(t) * math.exp(integral(t)))


def geometric(sigma_min: float = 0.02, sigma_max: float = 100.0) -> SDE:
    """Return the variance exploding SDE whose sigma grows by a constant factor (Song et al. 2021b, appendix C).

    sigma(t)^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1). `schedules.variance_exploding` is its discrete form,
    seen as variance preserving; there the first sigma is sigma_min.

    Raises:
        InputError: not 0 < sigma_min < sigma_max.
    """
    low, high = arguments.number("sigma_min", sigma_min), arguments.number("sigma_max", sigma_max)
    if not 0 < low < high:
        raise InputError("sigma_min", "must lie between 0 and {sigma_max}", sigma_min, sigma_max=sigma_max)
    rate = 2 * math.log(high / low)
    return SDE(lambda t: low**2 * math.expm1(rate * t), lambda t: low**2 * rate * math.exp(rate * t), preserving=False)


def langevin_step(x: np.ndarray, score: np.ndarray, delta: float, z: np.ndarray) -> np.ndarray:
    """Return x + delta score + sqrt(2 delta) z, a step of Langevin dynamics; all arrays (..., d)."""
    return x + delta * score + math.sqrt(2 * delta) * z


def euler_step(
    sde: SDE, x: np.ndarray, score: np.ndarray, t: float, step: float, z: np.ndarray, stochasticity: float = 1.0
) -> np.ndarray:
    """Return x at t + step, equation (4).

    Args:
        sde: the process.
        x: (..., d), at t.
        score: gradient of the log-density of x at t, (..., d).
        t: in [0, 1].
        step: h; negative = backwards, towards the data.
        z: standard normal noise, (..., d).
        stochasticity: lambda; 0 = the ODE, 1 = the forward or reverse SDE.
    """
    half = sde.diffusion_squared(t) / 2
    moved = x + step * (sde.drift(t) * x - half * score)
    return langevin_step(moved, score, stochasticity**2 * half * abs(step), z)


def paths(
    sde: SDE, score: Score, x: np.ndarray, times: np.ndarray, stochasticity: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Return the ways of points through these times, a step of equation (4) from each to the next.

    Args:
        sde: the process.
        score: gradient of the log-density at (x, t), (N, d) -> (N, d).
        x: (N, d), at the first time.
        times: (K,), increasing = forwards, decreasing = backwards.
        stochasticity: lambda; 0 = the ODE, 1 = the SDE.
        seed: seed of the noise.

    Returns:
        float64 (K, N, d), the first as given.
    """
    rng, way = np.random.default_rng(seed), [np.asarray(x, np.float64)]
    for t, step in zip(times[:-1], np.diff(times), strict=True):
        z = rng.normal(size=way[-1].shape)
        way.append(euler_step(sde, way[-1], score(way[-1], t), t, step, z, stochasticity))
    return np.stack(way)
