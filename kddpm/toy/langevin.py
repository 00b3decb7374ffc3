"""Langevin dynamics on a mixture of Gaussians: as they are, corrected, and annealed.

    (1)  x' = x + delta score + sqrt(2 delta) z
    (2)  log a = log q(x') k(x | x') - log q(x) k(x' | x),   k(x' | x) = N(x'; x + delta score(x), 2 delta)

A step (1) leaves q as it is up to an error that shrinks with delta: on N(0, v) it is stationary at the variance
v / (1 - delta / (2 v)). Taken with probability min(1, a), and otherwise not at all, it leaves q exactly as it is: the
Metropolis-adjusted Langevin algorithm, MALA (Roberts & Tweedie 1996).
"""

from collections.abc import Sequence

import numpy as np

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.theory.sde import langevin_step
from kddpm.toy.mixtures import Mixture


def log_acceptance(mixture: Mixture, x: np.ndarray, proposal: np.ndarray, delta: float) -> np.ndarray:
    """Return log a of steps from points (N, d) to points (N, d), equation (2), (N,); a step is taken if u < a."""

    def log_way(start, end):
        squares = np.sum((end - start - delta * mixture.score(start)) ** 2, axis=-1)
        return mixture.log_density(start) - squares / (4 * delta)

    return log_way(proposal, x) - log_way(x, proposal)


def langevin_paths(
    mixture: Mixture, x: np.ndarray, delta: float, num_steps: int, adjusted: bool = False, seed: int = 0
) -> np.ndarray:
    """Return the ways of points by Langevin dynamics on one density.

    Args:
        mixture: the density.
        x: where the points start, (N, d).
        delta: step size, the squared unit of x.
        num_steps: number of steps.
        adjusted: False = equation (1), True = MALA, equation (2).
        seed: seed of the noise.

    Returns:
        float64 (num_steps + 1, N, d), the start first.

    Raises:
        InputError: a step size that is not positive, or less than one step.
    """
    if not arguments.number("delta", delta) > 0:
        raise InputError("delta", "must be positive", delta)
    rng, way = np.random.default_rng(seed), [np.asarray(x, np.float64)]
    for _ in range(arguments.count("num_steps", num_steps)):
        x = way[-1]
        proposal = langevin_step(x, mixture.score(x), delta, rng.normal(size=x.shape))
        if adjusted:
            taken = np.log(rng.random(len(x))) < log_acceptance(mixture, x, proposal, delta)
            proposal = np.where(taken[:, np.newaxis], proposal, x)
        way.append(proposal)
    return np.stack(way)


def annealed_paths(
    mixture: Mixture,
    x: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    num_steps: int,
    share: float = 0.1,
    seed: int = 0,
) -> np.ndarray:
    """Return the ways of points by Langevin dynamics on ever less noisy densities (Song & Ermon 2019, algorithm 1).

    Args:
        mixture: the density without noise.
        x: where the points start, (N, d), for example N(0, sigmas[0]^2).
        sigmas: standard deviations of the noise, decreasing.
        num_steps: steps at each of them.
        share: delta is this times sigma^2.
        seed: seed of the noise.

    Returns:
        float64 (len(sigmas) num_steps + 1, N, d), the start first.

    Raises:
        InputError: sigmas that are not positive or do not decrease, or a bad argument of `langevin_paths`.
    """
    if np.any(np.diff(sigmas) >= 0) or not np.all(np.asarray(sigmas) > 0):
        raise InputError("sigmas", "must be positive and decrease", sigmas)
    way = [np.asarray(x, np.float64)[np.newaxis]]
    for level, sigma in enumerate(sigmas):
        noisy, child = mixture.noised(1.0, sigma), np.random.SeedSequence([seed, level]).generate_state(1)[0]
        way.append(langevin_paths(noisy, way[-1][-1], share * sigma**2, num_steps, seed=int(child))[1:])
    return np.concatenate(way)
