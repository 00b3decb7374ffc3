"""How far three estimates of the bound scatter, and their gradients."""

import numpy as np
import tensorflow as tf

from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.process import GaussianDiffusion
from kddpm.toy.gaussians import gaussian_eps, gaussian_images


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
