import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import kddpm
from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.theory import objectives, parametrization, schedules

GAUSSIAN = {"image_shape": (8, 8, 1), "mean": 0.1, "std": 0.3}
# At 5 standard errors a right formula fails a comparison with probability 6e-7, once: the seeds are fixed.
STANDARD_ERRORS = 5


def test_the_closed_form_is_what_a_sample_of_the_process_shows():
    """Regression of eps, and of x_{t-1}, on x_t over 400,000 draws: slope, offset and scatter, to 5 standard errors."""
    schedule, count, rng = schedules.linear(10, 0.01, 0.6), 400_000, np.random.default_rng(0)
    diffusion = kddpm.GaussianDiffusion(schedule)
    for index in (0, 4, 9):
        t = np.full(1, index)
        x_0 = rng.normal(0.1, 0.3, (1, count))
        before = x_0 if index == 0 else diffusion.q_sample(x_0, t - 1, rng.normal(size=x_0.shape))
        x_t = np.asarray(diffusion.q_step(before, t, rng.normal(size=x_0.shape)))
        signal, noise = np.sqrt(schedule.alpha_bars[index]), np.sqrt(schedule.one_minus_alpha_bars[index])
        eps = (x_t - signal * x_0) / noise
        rest = eps - toy.gaussian_eps(schedule, x_t, t, 0.1, 0.3)
        for regressor in (np.ones_like(x_t), x_t):  # what is left has nothing to do with x_t
            assert abs(np.mean(rest * regressor)) < STANDARD_ERRORS * np.std(rest * regressor) / np.sqrt(count)
        slope, offset = np.polyfit(x_t[0], np.asarray(before)[0], 1)
        left = np.var(before - (slope * x_t + offset))
        expected = toy.gaussian_variances(schedule, 0.3)[index]
        assert abs(left / expected - 1) < STANDARD_ERRORS * np.sqrt(2 / count)


def network_of(schedule, variance):
    """(network, arguments of the model) for "learned", which is exact, or with one of the two fixed variances."""

    weighting = "hybrid" if variance == "learned" else "simple"
    network = toy.GaussianNetwork(schedule=schedule, learned_variance=variance == "learned", **GAUSSIAN)
    return network, {"variance": variance, "weighting": weighting}


def expected_terms_nats(schedule, variance, std):
    """E[L_t] for t > 0 of the best eps with that variance, in closed form, (T - 1,), and the model's variances, (T,).

    E[KL] = (log(s^2 / q) + v / s^2 - 1) / 2 with s^2 the model's variance, q the posterior's, and v that of x_{t-1}
    given x_t alone.
    """
    real = toy.gaussian_variances(schedule, std)
    model = real if variance == "learned" else np.exp(parametrization.log_variances(schedule, variance))
    terms = (np.log(model[1:] / schedule.posterior_variances[1:]) + real[1:] / model[1:] - 1) / 2
    return terms, model


@pytest.mark.parametrize("variance", ["learned", "small", "large"])
def test_every_term_of_the_bound_is_what_it_must_be(variance):
    """4,096 squares a term scatter by 2.2 %; 5 standard errors of 99 terms fail a right network with 6e-5, once."""
    schedule = schedules.linear(100, 1e-3, 0.2)
    network, options = network_of(schedule, variance)
    model = kddpm.DiffusionModel(network, schedule, **options)
    result = model.bits_per_dim(toy.gaussian_images(64, **GAUSSIAN), clip=False, verbose=False)
    expected, _ = expected_terms_nats(schedule, variance, GAUSSIAN["std"])
    np.testing.assert_allclose(result.terms[1:] * np.log(2), expected, rtol=STANDARD_ERRORS * np.sqrt(2 / 4096))


@pytest.mark.parametrize(("variance", "expected"), [("learned", 0.0), ("small", 0.73), ("large", 0.12)])
def test_nothing_beats_the_exact_variance(variance, expected):
    """Bits per dimension above the information in Gaussian data: docs/theory.md quotes these for T = 1000.

    L_0 is the mean over 200,000 pixels and scatters by 0.005.
    """
    schedule, std, rng = schedules.linear(1000), 0.2, np.random.default_rng(1)
    terms, variances = expected_terms_nats(schedule, variance, std)
    x_0 = tf.constant(toy.gaussian_images(200_000, (1,), 0.0, std) / 127.5 - 1)
    t = np.zeros(1, int)
    x_t = kddpm.GaussianDiffusion(schedule).q_sample(x_0, t, rng.normal(size=x_0.shape))
    mean = kddpm.GaussianDiffusion(schedule).x0_from_eps(x_t, t, toy.gaussian_eps(schedule, x_t, t, 0.0, std))
    decoded = objectives.decoder_log_likelihood_nats(x_0, mean, np.log(variances[0]))
    information = objectives.decoder_log_likelihood_nats(x_0, 0.0, 2 * np.log(std))
    excess = (terms.sum() + np.mean(information - decoded)) / np.log(2)
    assert excess == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    "schedule", [schedules.constant(1, 0.5), schedules.constant(200, 0.3), schedules.cosine(1000)], ids=str
)
def test_a_learned_variance_without_a_range_is_its_one_value(schedule):
    """T = 1 has one variance, beta; and where no signal is left, that of the posterior is beta as well."""
    network = toy.GaussianNetwork(schedule=schedule, **GAUSSIAN)
    model = kddpm.DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    t = np.arange(schedule.num_timesteps)
    x = np.random.default_rng(0).normal(size=(len(t), 8, 8, 1))
    eps, fraction = np.split(network([x, t]), 2, axis=-1)
    assert np.isfinite(eps).all() and np.isfinite(fraction).all()
    variances = np.exp(model.diffusion.log_variance(x, t, "learned", fraction))[:, 0, 0, 0]
    best = toy.gaussian_variances(schedule, GAUSSIAN["std"])
    np.testing.assert_allclose(variances[1:], best[1:], rtol=1e-5)
    assert len(t) > 1 or variances == pytest.approx(0.5)
    assert np.isfinite(model.bits_per_dim(toy.gaussian_images(2, **GAUSSIAN), verbose=False).total)


def test_a_gaussian_network_round_trips_and_wants_plain_steps(tmp_path):
    schedule = schedules.cosine(20)
    network = toy.GaussianNetwork(schedule=schedule, **GAUSSIAN)
    model = kddpm.DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    model.save(tmp_path / "gaussian.keras")
    again = keras.models.load_model(tmp_path / "gaussian.keras")
    x, t = np.random.default_rng(0).normal(size=(3, 8, 8, 1)), np.array([0, 7, 19])
    np.testing.assert_array_equal(again.network([x, t]), network([x, t]))
    assert network([x, t]).shape == (3, 8, 8, 2)
    alone = toy.GaussianNetwork(schedule=schedule, learned_variance=False, **GAUSSIAN)
    np.testing.assert_array_equal(alone([x, t]), network([x, t])[..., :1])
    assert toy.GaussianNetwork.from_config(alone.get_config()).out_channels == alone.out_channels == 1
    with pytest.raises(InputError, match="Received: a respaced schedule"):
        toy.GaussianNetwork(schedule=schedule.respace([3, 19]), **GAUSSIAN)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_density_of_a_chain_is_that_of_quadrature(variance):
    """p(x_{t-1}) = integral of p(x_{t-1} | x_t) p(x_t), on 2,000 points; the decoder's bins by erf."""
    schedule, mean, std = schedules.linear(6, 0.05, 0.6), 0.1, 0.3
    kept, beta = np.cumprod(1 - schedule.betas), schedule.betas
    before = np.append(1.0, kept[:-1])
    posterior = beta * (1 - before) / (1 - kept)
    posterior[0] = posterior[1]
    sigma = np.sqrt(posterior if variance == "small" else np.append(posterior[0], beta[1:]))
    grid, width = np.linspace(-7, 7, 2000, retstep=True)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)

    def means(t):
        """Ho et al. 2020, eq. 7, with the mean of x_0 given x_t."""
        x_0 = mean + np.sqrt(kept[t]) * std**2 / (kept[t] * std**2 + 1 - kept[t]) * (grid - np.sqrt(kept[t]) * mean)
        return (np.sqrt(before[t]) * beta[t] * x_0 + np.sqrt(1 - beta[t]) * (1 - before[t]) * grid) / (1 - kept[t])

    for t in range(5, 0, -1):
        steps = np.exp(-(((grid[:, np.newaxis] - means(t)) / sigma[t]) ** 2) / 2) / (np.sqrt(2 * np.pi) * sigma[t])
        density = steps @ density * width
    images = np.array([20, 100, 140, 230], np.uint8).reshape(2, 1, 2, 1)
    x_0 = images.reshape(-1, 1) / 127.5 - 1
    upper, lower = ((x_0 + end - means(0)) / sigma[0] / np.sqrt(2) for end in (1 / 255, -1 / 255))
    erf = np.vectorize(math.erf)
    mass = (erf(upper) - erf(lower)) / 2 @ density * width
    expected = -np.log2(mass).reshape(2, 2).mean(axis=1)
    np.testing.assert_allclose(toy.gaussian_chain_bits(schedule, images, mean, std, variance), expected, rtol=1e-8)
