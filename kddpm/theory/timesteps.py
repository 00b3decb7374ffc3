"""How often training draws each t, where not uniformly: by the losses seen, or by the noise level.

Everything here is a function of the schedule and of the losses; `kddpm.model.draws` draws.
"""

import math

import numpy as np
from keras import ops

from kddpm.base.types import Tensor
from kddpm.theory.schedules import NoiseSchedule

_HISTORY_DECAY = 0.9  # averages over about 10 losses of each t, as many as Nichol & Dhariwal 2021, section 3.3
_HISTORY_NEEDED = 10
_UNIFORM_SHARE = 0.001
_LOG_SIGMA_MEAN, _LOG_SIGMA_STD = -1.2, 1.2  # Karras et al. 2022, table 1
_LARGEST_LOSS = 1e15  # its square still fits float32


def log_normal_probabilities(schedule: NoiseSchedule) -> np.ndarray:
    """Return the probability to draw each t if log(sigma) is N(-1.2, 1.2^2), sigma = sqrt((1 - alpha_bar) / alpha_bar).

    A t gets the mass of all log(sigma) that are nearest to its own (Karras et al. 2022, table 1 and section 5). Their
    loss is the mean over these t, with "edm" and "simple": the distribution stands for a choice of weights, and is not
    undone by 1 / (T p_t). The noisiest t are hardly ever drawn; docs/combinations.md has what that costs.

    Args:
        schedule: of all T steps; it leaves some signal at the end.

    Returns:
        float64 (T,), of sum 1.
    """
    log_sigmas = schedule.log_sigmas
    borders = (log_sigmas[1:] + log_sigmas[:-1]) / 2
    below = [0.5 * math.erfc((_LOG_SIGMA_MEAN - border) / _LOG_SIGMA_STD * math.sqrt(0.5)) for border in borders]
    return np.diff(below, prepend=0.0, append=1.0)


def importance_probabilities(squares: Tensor, counts: Tensor) -> Tensor:
    """Return the probability to draw each t, proportional to sqrt(E[L_t^2]) (Nichol & Dhariwal 2021, eq. 18).

    It is uniform until every t has been seen 10 times; after that a uniform part of 0.001 is mixed in.

    Args:
        squares: running means of squared losses, (T,).
        counts: how many losses of each t have been seen, (T,).

    Returns:
        (T,), of sum 1; a loss at a t drawn with p_t has the weight 1 / (T p_t).
    """
    size = squares.shape[0]
    roots = ops.sqrt(ops.maximum(squares, 1e-30))
    shares = (1 - _UNIFORM_SHARE) * roots / ops.sum(roots) + _UNIFORM_SHARE / size
    return ops.where(ops.min(counts) >= _HISTORY_NEEDED, shares, ops.full_like(shares, 1 / size))


def updated_loss_history(squares: Tensor, counts: Tensor, t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running means and counts of `importance_probabilities` after another batch.

    If the batch holds a t n times, its mean becomes 0.9^n times the old mean plus 1 - 0.9^n times the batch's mean
    square; the first time, it becomes the batch's mean square.

    Args:
        squares: running means of squared losses, (T,).
        counts: how many losses of each t have been seen, (T,).
        t: int (B,), may hold a t several times.
        losses: losses of the batch, without the weights 1 / (T p_t), (B,).

    Returns:
        The new squares and counts.
    """
    seen = ops.equal(ops.expand_dims(t, 0), ops.expand_dims(ops.arange(squares.shape[0]), 1))  # (T, B)
    times = ops.sum(ops.cast(seen, squares.dtype), axis=1)
    squared = ops.square(ops.minimum(losses, _LARGEST_LOSS))
    means = ops.sum(ops.where(seen, squared, 0.0), axis=1) / ops.maximum(times, 1)
    kept = ops.where(counts > 0, ops.power(_HISTORY_DECAY, times), ops.cast(times == 0, squares.dtype))
    return kept * squares + (1 - kept) * means, counts + times
