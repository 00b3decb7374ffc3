"""Bits by the probability-flow ODE, against flows and densities in closed form; error rates as in test_likelihood."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import STANDARD_ERRORS, best_model
from helpers.normal_pixels import MEAN, PIXELS, STD, best_line, draw_images, log_mass, make_best

import kddpm
from kddpm import likelihood, toy
from kddpm.base.errors import InputError
from kddpm.sampling import noise
from kddpm.theory import schedules

FINE = schedules.linear(1000)
BIT = math.log(2)


def bits(model, images, labels=None, **options):
    return likelihood.ode_bits_per_dim(model, images, labels, **{"verbose": False, "clip": False, **options})


def data_noise(seeds, shape):
    return np.float64(noise.normal(tf.constant(seeds, tf.int32), noise.DATA_STREAM, 0, shape))


def log_normal(x, mean, variance):
    return -(np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance) / 2


def flow_log_density(x, alpha_bars, mean=MEAN, std=STD):
    """log p(x) of each pixel at level 0, where the flow of N(mean, std^2) pixels begins with N(0, 1) at the last.

    The flow keeps the place among the quantiles: (x - s mean) / sqrt(w) is the same at all levels.
    """
    signal, w = np.sqrt(alpha_bars), alpha_bars * std**2 + 1 - alpha_bars
    stretch = np.sqrt(w[-1] / w[0])
    return log_normal(signal[-1] * mean + stretch * (x - signal[0] * mean), 0, 1) + np.log(stretch)


def expected_bits(images, schedule, log_density, x0_hat, dequantization, seed=0):
    """Equations (5) and (6), for a log-density of each picture per dimension and x_0 as the network sees it."""
    z = data_noise(np.arange(seed, seed + len(images)), images.shape[1:])
    kept, x_0 = schedule.alpha_bars[0], PIXELS[images]
    if dequantization == "uniform":
        xi = np.vectorize(math.erf)(z / math.sqrt(2)) / 2 / 127.5
        return (-log_density(np.sqrt(kept) * (x_0 + xi)) - np.log(kept) / 2 + np.log(127.5)) / BIT
    x = np.sqrt(kept) * x_0 + np.sqrt(1 - kept) * z
    decoder = -log_mass(x_0, x0_hat(x), math.sqrt(schedule.posterior_variances[1]))
    settled = decoder + log_normal(x, np.sqrt(kept) * x_0, 1 - kept)
    return (settled.mean(axis=(1, 2, 3)) - log_density(x)) / BIT


def gaussian_bits(images, schedule, dequantization="noise", seed=0):
    slope, offset = (column[0] for column in best_line(schedule.alpha_bars))

    def log_density(x):
        return flow_log_density(x, schedule.alpha_bars).mean(axis=(1, 2, 3))

    return expected_bits(images, schedule, log_density, lambda x: slope * x + offset, dequantization, seed)


@pytest.mark.parametrize("prediction", ["eps", "x0", "mu", "v"])
@pytest.mark.parametrize("dequantization", ["noise", "uniform"])
def test_bits_of_gaussian_pixels_are_the_closed_form_of_each_picture(prediction, dequantization):
    """In all 1,000 levels, to 2e-4 of 7 bits; the Jacobian is diagonal, so that Hutchinson's estimate is exact."""
    images = draw_images(6, (4, 4, 1))
    model = make_best(FINE, prediction, image_shape=(4, 4, 1))
    result = bits(model, images, dequantization=dequantization, seed=11)
    expected = gaussian_bits(images, FINE, dequantization, seed=11)
    np.testing.assert_allclose(result.images, expected, atol=2e-4)
    assert abs(result.step_error) < 1e-4 and result.total == pytest.approx(result.images.mean(), rel=1e-12)
    assert result.standard_error == pytest.approx(result.images.std(ddof=1) / math.sqrt(6))


@pytest.mark.parametrize("prediction", ["x0", "mu", "v"])
def test_no_signal_at_the_end_is_no_hindrance(prediction):
    """The angle there is a right one, and v is -x_0."""
    schedule = schedules.zero_terminal_snr(FINE)
    images = draw_images(4, (2, 2, 1))
    result = bits(make_best(schedule, prediction, image_shape=(2, 2, 1)), images)
    np.testing.assert_allclose(result.images, gaussian_bits(images, schedule), atol=3e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_signal_that_leaves_float32_is_no_hindrance(prediction):
    """Its first level has more noise than signal, and its steps are wide: what they err by is stated."""
    schedule = schedules.constant(1000, 0.3)
    images = draw_images(4, (2, 2, 1))
    result = bits(make_best(schedule, prediction, image_shape=(2, 2, 1)), images)
    error = result.total - gaussian_bits(images, schedule).mean()
    assert 0.1 > abs(error) and error == pytest.approx(result.step_error, rel=1)


def test_the_error_falls_with_the_square_of_the_step_and_is_stated():
    """Levels evenly apart in the angle, 40, 80 and 160 of them, of a schedule made for that."""
    schedule = schedules.from_alpha_bar(lambda u: math.cos(u * math.pi / 2 * 0.999) ** 2, 160)
    images = draw_images(16, (2, 2, 1))
    model = make_best(schedule, image_shape=(2, 2, 1))
    errors = []
    for stride in (4, 2, 1):
        kept = np.arange(0, 160, stride)
        kept[-1] = 159
        result = bits(model, images, num_steps=kept)
        errors.append(result.total - gaussian_bits(images, schedule.respace(kept)).mean())
        halved = result.halved - gaussian_bits(images, schedule.respace(kept)).mean()
        assert halved / errors[-1] == pytest.approx(4, rel=0.2)
        assert result.step_error == pytest.approx(errors[-1], rel=0.2)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2) and errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_nothing_is_lost_to_a_model_that_is_right():
    """The bits that the ODE counts are those of whoever knows the density, not less, for each dequantization."""
    images = draw_images(200, (4, 4, 1)).clip(10, 245)  # the bins at the ends hold all that lies beyond them
    code = -log_mass(PIXELS[images], MEAN, STD).mean(axis=(1, 2, 3)) / BIT
    for dequantization in ("noise", "uniform"):
        result = bits(make_best(FINE, image_shape=(4, 4, 1)), images, num_steps=200, dequantization=dequantization)
        excess = result.images - code
        error = excess.std(ddof=1) / math.sqrt(200)
        assert error < 0.02 and -STANDARD_ERRORS * error < excess.mean() < 0.3
        if dequantization == "uniform":
            assert excess.mean() < 0.01


# Where pixels depend on one another.

LONG = schedules.cosine(200)


def correlated_bits(images, model, schedule):
    """Of `BestNetwork`: in the basis of the covariance, every coordinate has a flow of its own."""
    values, basis = np.linalg.eigh(model.network.covariance)
    w = schedule.alpha_bars[:, np.newaxis] * values + 1 - schedule.alpha_bars[:, np.newaxis]
    stretch = np.sqrt(w[-1] / w[0])

    def log_density(x):
        along = x.reshape(len(x), -1) @ basis
        return (log_normal(stretch * along, 0, 1) + np.log(stretch)).mean(axis=1)

    def x0_hat(x):
        gain = basis @ np.diag(np.sqrt(schedule.alpha_bars[0]) * values / w[0]) @ basis.T
        return (x.reshape(len(x), -1) @ gain).reshape(x.shape)

    return expected_bits(images, schedule, log_density, x0_hat, "noise")


def test_both_divergences_of_pixels_that_depend_on_one_another():
    """The exact one to the error of the steps; Hutchinson's scatters about it, less in more steps."""
    model = best_model((2, 3, 1), LONG, std=0.3, correlation=0.8)
    images = draw_images(300, (2, 3, 1), mean=0.0)
    exact = bits(model, images, divergence="exact")
    expected = correlated_bits(images, model, LONG)
    np.testing.assert_allclose(exact.images, expected, atol=0.02)  # of up to 14 bits
    assert np.mean(exact.images - expected) == pytest.approx(exact.step_error, rel=0.2)
    estimated = bits(model, images)
    difference = estimated.images - exact.images
    assert 0 < difference.std() < 0.2
    assert abs(difference.mean()) < STANDARD_ERRORS * difference.std() / math.sqrt(300)
    batched = bits(model, images[:7], divergence="exact", batch_size=3)
    np.testing.assert_allclose(batched.images, exact.images[:7], atol=1e-6)


CENTRES = np.array([[-0.6, -0.5], [0.5, 0.1], [0.2, 0.7]])
SPREAD = 0.08


class BestMixture(keras.Model):
    """The best x_0 for pairs of pixels about one of three centres, with that deviation."""

    image_shape, num_classes, out_channels = (1, 2, 1), None, 1

    def __init__(self, alpha_bars):
        super().__init__()
        self.alpha_bars = alpha_bars

    def call(self, inputs):
        x_t, t = inputs
        kept = tf.gather(self.alpha_bars.astype("float32"), t)[:, None, None]
        x, w = tf.reshape(x_t, [-1, 1, 2]), kept * SPREAD**2 + 1 - kept
        apart = x - tf.sqrt(kept) * CENTRES.astype("float32")
        shares = tf.nn.softmax(-tf.reduce_sum(apart**2, axis=-1, keepdims=True) / (2 * w), axis=1)
        best = CENTRES.astype("float32") + tf.sqrt(kept) * SPREAD**2 / w * apart
        return tf.reshape(tf.reduce_sum(shares * best, axis=1), [-1, 1, 2, 1])


def test_bits_of_a_mixture_in_the_plane_are_those_of_its_density():
    """x_T is N(0, 1) exactly, as no signal is left; so the flow has the density of the noisy mixture at level 0.

    In 300 levels, to 3e-3 bits where a picture lies between two centres, and to 3e-4 on average.
    """
    schedule = schedules.zero_terminal_snr(schedules.cosine(300))
    network = BestMixture(schedule.alpha_bars)
    denoiser = kddpm.Denoiser(network, schedule, kddpm.Objective("x0"))
    drawn = np.random.default_rng(0).normal(CENTRES[np.arange(60) % 3], SPREAD)
    images = np.round((drawn.reshape(60, 1, 2, 1) + 1) * 127.5).astype(np.uint8)
    kept = schedule.alpha_bars[0]
    w = kept * SPREAD**2 + 1 - kept

    def log_density(x):
        each = log_normal(x.reshape(-1, 1, 2), np.sqrt(kept) * CENTRES, w).sum(axis=-1)
        return np.log(np.exp(each).mean(axis=1)) / 2

    def x0_hat(x):
        return np.float64(network([x.astype(np.float32), np.zeros(len(x), np.int32)]))

    expected = expected_bits(images, schedule, log_density, x0_hat, "noise")
    exact = bits(denoiser, images, divergence="exact")
    np.testing.assert_allclose(exact.images, expected, atol=3e-3)
    assert exact.total == pytest.approx(expected.mean(), abs=3e-4)
    assert abs(exact.step_error) < 3e-4
    estimated = bits(denoiser, images)
    assert abs(estimated.total - exact.total) < 0.05
    assert np.abs(estimated.images - exact.images).max() > 1e-3  # the two pixels are not independent


# What it does with a model.


class Timid(toy.GaussianNetwork):
    """Says only 0.9 of the noise."""

    def call(self, inputs, training=False, seed=None):
        return 0.9 * super().call(inputs)


def test_clipping_spares_bits_where_the_signal_is_gone():
    """A right network is not clipped; the error of a wrong one is divided by 5e-5, the signal at the last level."""
    schedule, images = schedules.cosine(200), toy.gaussian_images(8, (2, 2, 1), 0.0, 0.1)

    def both(kind):
        network = kind((2, 2, 1), schedule, 0.0, 0.1, learned_variance=False)
        return [bits(kddpm.Denoiser(network, schedule), images, clip=clip).images for clip in (True, False)]

    clipped, free = both(toy.GaussianNetwork)
    np.testing.assert_allclose(clipped, free, atol=1e-3)
    timid_clipped, timid_free = both(Timid)
    assert np.all(timid_clipped < clipped + 2) and np.all(timid_free > timid_clipped + 1)


def test_an_image_has_its_bits_whatever_stands_beside_it():
    images, model = draw_images(5, (4, 4, 1)), best_model((4, 4, 1), correlation=0.5)
    together = bits(model, images, seed=3, num_steps=6)
    batched = bits(model, images, seed=3, num_steps=6, batch_size=2)
    np.testing.assert_allclose(batched.images, together.images, rtol=1e-4)
    alone = bits(model, images[4:], seed=7, num_steps=6)
    assert alone.total == pytest.approx(together.images[4], rel=1e-4) and math.isnan(alone.standard_error)
    assert bits(model, images, seed=4, num_steps=6).total != pytest.approx(together.total, rel=1e-4)
    text = str(together)
    assert text.startswith(f"{together.total:.4f} bits per dimension by the ODE, standard error ")


def test_labels_are_what_the_network_is_asked_with():
    images = np.concatenate([draw_images(10, (4, 4, 1), mean=MEAN + 0.1 * k) for k in (0, 3)])
    model, labels = make_best(FINE, image_shape=(4, 4, 1), num_classes=4), np.repeat([0, 3], 10)
    right, wrong = (bits(model, images, each, num_steps=50) for each in (labels, labels[::-1]))
    assert wrong.total > right.total + 0.3
    exact = bits(model, images, labels, num_steps=50, divergence="exact")
    np.testing.assert_allclose(exact.images, right.images, atol=1e-4)


def test_a_single_level_has_no_steps_and_no_error_of_them():
    result = bits(make_best(FINE, image_shape=(2, 2, 1)), draw_images(3, (2, 2, 1)), num_steps=1)
    assert math.isnan(result.step_error) and result.halved == result.total


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"divergence": "none"}, "`divergence` must be one of hutchinson, exact. Received: 'none'"),
        ({"dequantization": None}, "`dequantization` must be one of noise, uniform. Received: None"),
        ({"clip": "dynamic"}, "`clip` must be True or False for bits per dimension. Received: 'dynamic'"),
        ({"num_steps": 1001}, "`num_steps` must be an integer in 1 .. 1000"),
        ({"seed": 2**31}, "`seed` must fit int32"),
        ({"labels": [0, 1]}, "`labels` were given, but the network has no classes"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(options, expected):
    with pytest.raises(InputError, match=expected):
        bits(make_best(FINE, image_shape=(2, 2, 1)), draw_images(2, (2, 2, 1)), **options)
