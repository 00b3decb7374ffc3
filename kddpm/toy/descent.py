"""Gradient descent on the bound: what `vae` and the learning curves of `estimators` train with."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.theory import objectives
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion, split_output
from kddpm.theory.schedules import NoiseSchedule

ESTIMATORS = ("trajectory", "pair", "one_sample")

_LEARNED = Objective("v", "vlb", "learned")
STEPS_A_CALL = 50  # steps of one call of the compiled graph


class Descent:
    """Adam on the mean of a loss, with a rate that falls to zero as a cosine; compiled once, run as often as one likes.

    Args:
        loss: (x_0, seeds) -> losses, (B,), where `seeds` are two int32 for TensorFlow's stateless random numbers.
        weights: variables that it depends on.
        points: data, float32 (N, ...), of which every step draws a batch.
        batch: points of a step.
        steps: steps of a whole run; a multiple of 50.
        learning_rate: rate of the first step.

    Raises:
        InputError: `steps` is not a multiple of 50.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        weights: Sequence[keras.Variable],
        points: np.ndarray,
        batch: int = 250,
        steps: int = 2000,
        learning_rate: float = 4e-3,
    ):
        if arguments.count("steps", steps) % STEPS_A_CALL:
            raise InputError("steps", f"must be a multiple of {STEPS_A_CALL}", steps)
        self.steps = steps
        self._optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))
        self._optimizer.build(weights)
        self._fresh = [np.array(variable) for variable in self._optimizer.variables]
        data = tf.constant(points)

        def step(seed, index):
            key = tf.stack([seed, index])
            chosen = tf.random.stateless_uniform([batch], key, 0, len(points), tf.int32)
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(tf.gather(data, chosen), tf.random.fold_in(key, 1)))
            self._optimizer.apply(tape.gradient(value, weights), weights)
            return seed, index + 1

        @tf.function(jit_compile=True, autograph=False)
        def several(seed, first):
            tf.while_loop(lambda _, index: index < first + STEPS_A_CALL, step, (seed, first))

        self._several = several

    def run(self, seed: int = 0, watch: Callable[[int], None] = lambda step: None) -> None:
        """Take all steps, with a fresh Adam; the weights go on from what they are.

        Args:
            seed: seed of the batches and of what the loss draws.
            watch: called with the number of steps taken, every 50 steps.
        """
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        for first in range(0, self.steps, STEPS_A_CALL):
            self._several(tf.constant(seed), tf.constant(first))
            watch(first + STEPS_A_CALL)


def bound_loss(estimator: str, schedule: NoiseSchedule, reverse: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    """Return one of the three estimators as a loss of `Descent`, which draws t and noise.

    Args:
        estimator: "trajectory", "pair" or "one_sample".
        schedule: a schedule of T steps.
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t).

    Returns:
        (x_0, seeds) -> estimates of the bound on -log p(x_0), as a density, (B,) in nats per dimension.

    Raises:
        InputError: the estimator is not one of the three.
    """
    if estimator not in ESTIMATORS:
        raise InputError("estimator", f"must be one of {', '.join(ESTIMATORS)}", repr(estimator))
    diffusion, steps = GaussianDiffusion(schedule), schedule.num_timesteps
    estimate = getattr(objectives, f"bound_from_{estimator}_nats")

    def loss(x_0, seeds):
        def normal(stream, *more):
            return tf.random.stateless_normal((*more, *x_0.shape), tf.random.fold_in(seeds, stream), dtype=x_0.dtype)

        if estimator == "trajectory":
            draws = [normal(1, steps)]
        else:
            t = tf.random.stateless_uniform(x_0.shape[:1], tf.random.fold_in(seeds, 3), 0, steps, tf.int32)
            draws = [t, *(normal(stream) for stream in ((1, 2) if estimator == "pair" else (1,)))]
        return estimate(diffusion, reverse, x_0, *draws, objectives.normal_log_likelihood_nats)

    return loss


def reverse_of(schedule: NoiseSchedule, network: keras.Model) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t), t int (B,).

    Args:
        schedule: a schedule of T steps.
        network: called on [x_t, t], with 2 C channels: v and the position of the log-variance in its range.
    """
    diffusion = GaussianDiffusion(schedule)

    def reverse(x_t, t):
        return diffusion.p_mean_log_variance(x_t, t, *split_output(network([x_t, t]), _LEARNED), _LEARNED)

    return reverse
