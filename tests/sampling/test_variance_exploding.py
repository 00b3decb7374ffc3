"""The variance exploding process is a schedule in y = x / sqrt(alpha_bar): same chain, same loss, same samples."""

import math

import numpy as np
import pytest
import tensorflow as tf

import kddpm
from kddpm import data, toy
from kddpm.base.errors import InputError
from kddpm.runs import presets
from kddpm.sampling import samplers
from kddpm.theory import objectives, schedules
from kddpm.theory.process import GaussianDiffusion

T = 50
SCHEDULE = schedules.variance_exploding(T)
SIGMAS = 0.02 * (100 / 0.02) ** (np.arange(T) / (T - 1))  # Song & Ermon 2019: a geometric sequence
FACTORS = np.sqrt(1 + SIGMAS**2)  # y = FACTORS x


def test_sigma_is_geometric():
    np.testing.assert_allclose(np.exp(SCHEDULE.log_sigmas), SIGMAS, rtol=1e-12)
    np.testing.assert_allclose(1 / np.sqrt(SCHEDULE.alpha_bars), FACTORS, rtol=1e-12)
    other = schedules.variance_exploding(4, sigma_min=0.1, sigma_max=100.0)
    np.testing.assert_allclose(np.exp(other.log_sigmas), [0.1, 1, 10, 100], rtol=1e-12)


def test_the_chain_is_that_of_variance_exploding():
    """y_t = y_{t-1} + sqrt(sigma_t^2 - sigma_{t-1}^2) z, step by step with the same z, and at once."""
    diffusion, rng = GaussianDiffusion(SCHEDULE), np.random.default_rng(0)
    x = y = x_0 = rng.normal(size=(1, 30))
    for t in range(T):
        z, at = rng.normal(size=x.shape), np.array([t])
        x = np.asarray(diffusion.q_step(x, at, z))
        y = y + math.sqrt(SIGMAS[t] ** 2 - (SIGMAS[t - 1] ** 2 if t else 0)) * z
        np.testing.assert_allclose(x * FACTORS[t], y, rtol=1e-12, atol=1e-12)
        at_once = diffusion.q_sample(x_0, at, z) * FACTORS[t]
        np.testing.assert_allclose(at_once, x_0 + SIGMAS[t] * z, rtol=1e-12, atol=1e-12)


def test_a_network_of_y_with_scaled_input_has_the_same_loss_and_gradient():
    """The network of y sees y / sqrt(1 + sigma^2) and says the noise of y = x_0 + sigma eps."""
    rng, t = np.random.default_rng(0), np.arange(T)
    network = toy.MLP(width=16)
    network.set_weights([rng.normal(size=w.shape) / 3 for w in network.weights])
    x_0, noise = rng.uniform(-1, 1, (T, 1, 1, 2)).astype(np.float32), rng.normal(size=(T, 1, 1, 2)).astype(np.float32)
    diffusion, column = GaussianDiffusion(SCHEDULE), (T, 1, 1, 1)
    x_t = diffusion.q_sample(x_0, t, noise)
    y_t = x_0 + SIGMAS.reshape(column).astype(np.float32) * noise

    def of_x():
        return objectives.training_loss(diffusion, x_t, t, x_0, noise, network([x_t, t]))

    def of_y():
        predicted = network([y_t / FACTORS.reshape(column).astype(np.float32), t])
        return tf.reduce_mean((noise - predicted) ** 2, axis=[1, 2, 3])

    (loss_x, gradient_x), (loss_y, gradient_y) = (loss_and_gradient(network, loss) for loss in (of_x, of_y))
    np.testing.assert_allclose(loss_x, loss_y, rtol=1e-5)
    for one, other in zip(gradient_x, gradient_y, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def loss_and_gradient(network, loss):
    with tf.GradientTape() as tape:
        values = loss()
    return values.numpy(), [np.array(part) for part in tape.gradient(values, network.trainable_variables)]


def step(rows, i, x, x_0, z):
    """Row i of a table of coefficients."""
    return rows.from_x0[i] * x_0 + rows.from_xt[i] * x + rows.noise_std[i] * z


def test_samplers_take_the_steps_of_variance_exploding():
    """Ancestral sampling of Song et al. 2021b, equation 47, and Euler's step of the ODE in sigma, both in y."""
    rng = np.random.default_rng(0)
    ancestral, ddim = samplers.Ancestral().rows(SCHEDULE), samplers.DDIM().rows(SCHEDULE)
    for i, t in enumerate(range(T - 1, -1, -1)):
        y, x_0, z = rng.normal(size=(3, 20))
        sigma, below = SIGMAS[t], SIGMAS[t - 1] if t else 0.0
        score, back = (x_0 - y) / sigma**2, FACTORS[t - 1] if t else 1.0
        gap = sigma**2 - below**2
        expected = y + gap * score + math.sqrt(below**2 * gap / sigma**2) * z
        found = back * step(ancestral, i, y / FACTORS[t], x_0, z)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        expected = y + (below - sigma) * (y - x_0) / sigma
        found = back * step(ddim, i, y / FACTORS[t], x_0, z)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((10, 0, 1), "`sigma_min` must lie between 0 and sigma_max=1. Received: 0"),
        ((10, 2, 1), "`sigma_min` must lie between 0 and sigma_max=1. Received: 2"),
        ((10, 0.1, math.inf), "`sigma_max` must be a number. Received: inf"),
        ((0,), "`num_timesteps` must be a positive integer. Received: 0"),
    ],
)
def test_impossible_sigmas_are_named(arguments, text):
    with pytest.raises(InputError, match=text):
        schedules.variance_exploding(*arguments)


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    """The distance of generated digits from the nearest real one, root mean square: 0.37 after 500 steps.

    Real digits have a neighbour at 0.26, and pixels drawn evenly one at 0.89.
    """
    overrides = {"steps": 500, "num_timesteps": 200, "sampling_steps": None, "ema_momentum": 0.98, "sample_every": 1000}
    config = presets.make_config("digits", schedule="variance_exploding", **overrides)
    model = kddpm.train(config, tmp_path / "run", verbose=False)
    real = data.load("digits", progress=False).images
    painted = model.generate(range(100), "ancestral", verbose=False)
    squares = (painted[:, np.newaxis] / 127.5 - real / 127.5) ** 2
    assert np.mean(np.sqrt(squares.mean(axis=(2, 3, 4)).min(axis=1))) < 0.45
