"""Three estimates of the bound: how far they and their gradients scatter, and what training by each of them does."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.process import GaussianDiffusion
from kddpm.theory.schedules import NoiseSchedule
from kddpm.toy.descent import ESTIMATORS, STEPS_A_CALL, Descent, bound_loss, reverse_of
from kddpm.toy.gaussians import gaussian_eps, gaussian_images
from kddpm.toy.planes import IMAGE_SHAPE, MLP, Plane, to_images


def estimator_variances(
    num_timesteps: int, images: int = 2000, pixels: int = 64, error: float = 0.05, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the variances of three estimates of the bound and of their gradients.

    Data are N(0.1, 0.3^2) in every pixel, the network predicts (1 + error) times the best eps, the variance is "small"
    and the schedule linear, respaced to T steps. The gradient is by `error`, a weight that all pixels and t share.

    Args:
        num_timesteps: T.
        images: number of estimates by the two that use one t; a tenth as many of trajectories, each T network calls.
        pixels: pixels of an image; an estimate is their mean.
        error: relative error of the network.
        seed: seed of images, t and noise.

    Returns:
        For "trajectory", "pair" and "one_sample" the variance of the estimate in (nats per dimension)^2, and that of
        its gradient.
    """
    mean, std, rng = 0.1, 0.3, np.random.default_rng(seed + 1)  # not the seed of the images
    fine = schedules.linear()
    schedule = fine.respace(schedules.timestep_grid(fine, num_timesteps))
    diffusion = GaussianDiffusion(schedule)

    def variances(estimate, count, *draws):
        x_0 = tf.constant(gaussian_images(count, (pixels,), mean, std, seed) / 127.5 - 1)
        errors = tf.fill([count, 1], tf.constant(error, tf.float64))  # one per estimate, each with its own gradient

        def reverse(x_t, t):
            eps = (1 + errors) * gaussian_eps(schedule, x_t, t, mean, std)
            return diffusion.p_mean_log_variance(x_t, t, eps, None, parametrization.Objective())

        with tf.GradientTape() as tape:
            tape.watch(errors)
            values = estimate(diffusion, reverse, x_0, *draws)
        return float(np.var(values, ddof=1)), float(np.var(tape.gradient(values, errors), ddof=1))

    def normal(*shape):
        return tf.constant(rng.normal(size=shape))

    t = tf.constant(rng.integers(0, num_timesteps, images), tf.int32)
    few = max(images // 10, 2)
    return {
        "trajectory": variances(
            objectives.bound_from_trajectory_nats, few, normal(num_timesteps, few, pixels)
        ),
        "pair": variances(objectives.bound_from_pair_nats, images, t, normal(images, pixels), normal(images, pixels)),
        "one_sample": variances(objectives.bound_from_one_sample_nats, images, t, normal(images, pixels)),
    }  # fmt: skip


def learning_curves(
    plane: Plane,
    estimators: Sequence[str] = ESTIMATORS,
    seeds: Sequence[int] = (0, 1, 2),
    num_timesteps: int = 20,
    calls: int = 200,
    steps: int = 800,
    every: int = 50,
    learning_rate: float = 4e-3,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Train the same network by each estimator and return the bound on points that it has not seen, as it learns.

    Args:
        plane: the distribution of the points.
        estimators: which of the three.
        seeds: a run each: of its weights, its batches and its noise. All estimators start from the same weights.
        num_timesteps: T, of the cosine schedule.
        calls: network calls of a step, a multiple of T: one estimate by a trajectory takes T, by the others 1.
        steps: training steps of a run; a multiple of 50.
        every: steps between two values of a curve; a multiple of 50.
        learning_rate: rate of the first step.

    Returns:
        Network calls of each value, (N,), and for each estimator the bounds, (seeds, N), in nats per dimension.

    Raises:
        InputError: `calls`, `steps` or `every` is not such a multiple, or an estimator is not one of the three.
    """
    if arguments.count("calls", calls) % num_timesteps:
        raise InputError("calls", f"must be a multiple of {num_timesteps} steps", calls)
    if arguments.count("every", every) % STEPS_A_CALL:
        raise InputError("every", f"must be a multiple of {STEPS_A_CALL}", every)
    network, schedule = MLP(out_channels=2 * IMAGE_SHAPE[-1]), schedules.cosine(num_timesteps)
    reverse = reverse_of(schedule, network)
    points = to_images(plane.draw(20_000))
    held_out = _held_out_bound(schedule, reverse, to_images(plane.draw(500, seed=1)))
    curves = {}
    for estimator in estimators:
        batch = calls // num_timesteps if estimator == "trajectory" else calls
        loss = bound_loss(estimator, schedule, reverse)
        descent = Descent(loss, network.trainable_variables, points, batch, steps, learning_rate)
        rows = []
        for seed in seeds:
            keras.utils.set_random_seed(seed)
            network.set_weights(MLP(out_channels=network.out_channels).get_weights())
            rows.append([held_out()])

            def watch(step, row=rows[-1]):
                if step % every == 0:
                    row.append(held_out())

            descent.run(seed, watch)
        curves[estimator] = np.array(rows)
    return calls * np.arange(0, steps + 1, every), curves


def _held_out_bound(schedule: NoiseSchedule, reverse: Callable, x_0: np.ndarray) -> Callable[[], float]:
    """Return a function of no arguments that estimates the bound on the points x_0, always with the same noise.

    Every point meets every t once, so that of equation (6) of `kddpm.objectives` only the noise is left to chance.
    """
    steps = schedule.num_timesteps
    repeated = tf.repeat(tf.constant(x_0), steps, axis=0)
    t = tf.tile(tf.range(steps), [len(x_0)])
    noise = tf.random.stateless_normal(repeated.shape, (0, 0))

    @tf.function(jit_compile=True, autograph=False)
    def bound():
        decoder = objectives.normal_log_likelihood_nats
        diffusion = GaussianDiffusion(schedule)
        return tf.reduce_mean(objectives.bound_from_one_sample_nats(diffusion, reverse, repeated, t, noise, decoder))

    return lambda: float(bound())
