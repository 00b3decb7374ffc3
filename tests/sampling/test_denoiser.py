"""A network of anybody's generates, is measured and is exported without a `DiffusionModel`."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import gaussian_denoiser

import kddpm
from kddpm import editing, generation, likelihood
from kddpm.base.errors import InputError
from kddpm.device import export
from kddpm.theory import parametrization, schedules

SHAPE, T = (8, 8, 1), 20
SCHEDULE = kddpm.schedules.linear(T, 1e-3, 0.5)


def own_network(num_classes=None, **compute):
    """A functional Keras model that nothing of kddpm made."""
    x_t, t = keras.Input(SHAPE), keras.Input((), dtype="int32")
    inputs, shift = [x_t, t], keras.layers.Embedding(T, 8)(t)
    if num_classes:
        label = keras.Input((), dtype="int32")
        inputs.append(label)
        shift = shift + keras.layers.Embedding(num_classes + 1, 8)(label)
    h = keras.layers.Conv2D(8, 3, padding="same")(x_t) + keras.layers.Reshape((1, 1, 8))(shift)
    network = keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same")(keras.ops.silu(h)))
    network.image_shape, network.num_classes = SHAPE, num_classes
    return network


@pytest.fixture
def denoiser():
    return kddpm.Denoiser(own_network(), SCHEDULE, kddpm.Objective("v"))


def test_it_generates(denoiser):
    pictures = generation.generate(denoiser, range(3), "ddim", 5)
    assert pictures.shape == (3, *SHAPE) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures[1:2], generation.generate(denoiser, [1], "ddim", 5))


def test_it_is_what_a_model_of_the_same_weights_gives(make_model, give_weights):
    model = make_model(prediction="v")
    give_weights(model)
    alone = kddpm.Denoiser(model.ema_network, model.schedule, kddpm.Objective("v"))
    np.testing.assert_array_equal(generation.generate(alone, [3, 4], num_steps=5), model.generate([3, 4], num_steps=5))
    images = kddpm.data.load("digits").images[:2]
    ours, theirs = likelihood.bits_per_dim(alone, images, num_terms=3), model.bits_per_dim(images, num_terms=3)
    np.testing.assert_array_equal(ours.images, theirs.images)


def test_it_edits_and_is_measured(denoiser):
    images = kddpm.data.load("digits").images[:2]
    x_T = editing.invert(denoiser, images, 5)
    assert x_T.shape == images.shape and np.isfinite(x_T).all()
    mask = np.zeros(SHAPE[:2], bool)
    mask[:4] = True
    painted = editing.inpaint(denoiser, images, mask, num_steps=5, resamplings=1)
    np.testing.assert_array_equal(painted[:, :4], images[:, :4])
    assert np.isfinite(likelihood.bits_per_dim(denoiser, images).total)


def test_it_is_exported(denoiser, tmp_path):
    about = export.export(denoiser, tmp_path / "own.tflite", sampler="ddim", num_steps=3, parity_seeds=1, verbose=False)
    assert about["network_calls"] == 3 and about["prediction"] == "v"
    assert about["parity"]["max_grey_levels"] <= 1


def test_guidance_needs_a_network_that_knows_no_class():
    guided = kddpm.Denoiser(own_network(num_classes=3), SCHEDULE)
    assert len(generation.generate(guided, [0, 1], num_steps=3, labels=[2, 0], guidance_scale=2.0)) == 2
    with pytest.raises(InputError, match="`guidance_scale` needs a model trained with label_dropout"):
        generation.generate(
            dataclasses.replace(guided, knows_no_class=False), [0], num_steps=3, labels=[1], guidance_scale=2.0
        )


def test_what_means_nothing_is_refused():
    with pytest.raises(
        InputError, match="`prediction` must be x0, mu, v, edm or velocity where the schedule ends at alpha_bar = 0"
    ):
        kddpm.Denoiser(own_network(), kddpm.schedules.zero_terminal_snr(SCHEDULE))


def test_functions_are_compiled_once_and_forgotten_at_last(denoiser):
    made = []
    for key in (0, *range(70), 69, 0):
        denoiser.compiled(key, lambda key=key: made.append(key) or key)
    assert made == [*range(70), 0]  # 0 was the first to be forgotten


def test_output_channels_must_be_those_of_the_objective():
    learned = kddpm.Objective(weighting="hybrid", variance="learned")
    with pytest.raises(InputError, match="`network` must have 2 output channels for variance='learned'"):
        kddpm.Denoiser(own_network(), SCHEDULE, learned)


@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_x0_at_any_log_snr_is_that_of_the_levels_about_it(prediction):
    """The best network for N(0.1, 0.25^2): at a level what it says, between two of 1000 levels nearly."""
    schedule, std, mean = schedules.cosine(1000), 0.25, 0.1
    predict = gaussian_denoiser(schedule, mean, std, prediction)

    class Best(keras.Model):
        image_shape, num_classes = SHAPE, None

        def call(self, inputs, training=False):
            return predict(*inputs)

    denoiser = kddpm.Denoiser(Best(), schedule, kddpm.Objective(prediction))
    levels = -2 * schedule.log_sigmas[[10, 100, 500, 900]]
    z = np.random.default_rng(0).normal(size=(4, *denoiser.image_shape)).astype(np.float32)
    for log_snr, atol in ((levels, 1e-3), (0.6 * levels + 0.4 * (-2 * schedule.log_sigmas[[11, 101, 501, 901]]), 2e-3)):
        found = denoiser.x0_at(tf.constant(z), tf.constant(log_snr, tf.float32))
        signal, noise = (np.sqrt(1 / (1 + np.exp(sign * log_snr))).reshape(-1, 1, 1, 1) for sign in (-1, 1))
        expected = mean + std**2 * signal / (std**2 * signal**2 + noise**2) * (z - signal * mean)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
