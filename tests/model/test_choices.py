"""Choices of a model that do not go together, and those that do."""

import json

import keras
import numpy as np
import pytest
from helpers.image_samples import random_pixels
from helpers.networks import OneConv, T
from helpers.small_models import SHAPE, ZERO_SNR, train

import kddpm
from kddpm.base.errors import InputError
from kddpm.theory import schedules


@pytest.mark.parametrize(
    ("choices", "out_channels", "message"),
    [
        ({"prediction": "score"}, 1, "`prediction` must be one of eps, x0, mu, v, edm, velocity. Received: 'score'"),
        (
            {"prediction": "v", "weighting": "mu"},
            1,
            "`weighting` must be one of simple, vlb, min_snr, hybrid, each in the form that belongs to `prediction`. "
            "Received: 'mu'",
        ),
        ({"variance": "fixed"}, 1, "`variance` must be one of small, large, learned. Received: 'fixed'"),
        (
            {"timestep_sampling": "uneven"},
            1,
            "`timestep_sampling` must be one of uniform, stratified, importance, log_normal. Received: 'uneven'",
        ),
        *(
            (
                {"weighting": "hybrid", "variance": variance},
                1,
                "`weighting` hybrid is the loss of a learned variance and needs variance='learned'. "
                f"Received: variance='{variance}'",
            )
            for variance in ("small", "large")
        ),
        *(
            (
                {"weighting": weighting, "variance": "learned"},
                2,
                "`variance` learned needs weighting='hybrid' or 'vlb': no other term trains it. "
                f"Received: weighting='{weighting}'",
            )
            for weighting in ("simple", "min_snr")
        ),
        (
            {"weighting": "hybrid", "variance": "learned"},
            1,
            r"`network` must have 2 output channels for variance='learned' and images of 1: "
            r"UNet\(..., out_channels=2\). Received: 1",
        ),
        (
            {},
            2,
            r"`network` must have 1 output channels for variance='small' and images of 1: "
            r"UNet\(..., out_channels=1\). Received: 2",
        ),
        (
            {"schedule": ZERO_SNR},
            1,
            r"`prediction` must be x0, mu, v, edm or velocity where the schedule ends at alpha_bar = 0 \(zero "
            r"terminal SNR\): there eps is x_t itself and says nothing about the image. Received: 'eps'",
        ),
        ({"label_dropout": 1.0}, 1, r"`label_dropout` must lie in \[0, 1\). Received: 1.0"),
        ({"label_dropout": -0.1}, 1, r"`label_dropout` must lie in \[0, 1\). Received: -0.1"),
    ],
)
def test_choices_that_do_not_go_together_are_refused_with_the_reason(choices, out_channels, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        kddpm.DiffusionModel(
            OneConv(out_channels=out_channels), **{"schedule": schedules.linear(T, 1e-3, 0.5), **choices}
        )


@pytest.mark.parametrize("prediction", ["x0", "mu", "v"])
def test_the_other_predictions_train_to_the_end_of_the_signal(prediction):
    keras.utils.set_random_seed(0)
    model = kddpm.DiffusionModel(OneConv(), ZERO_SNR, prediction=prediction)
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    loss = train(model, random_pixels(16, *SHAPE), epochs=8)["loss"]
    assert np.isfinite(loss).all() and loss[-1] < loss[0]


# A respaced schedule keeps the names of its steps.


def test_training_and_sampling_tell_the_network_the_same_names():
    class Listener(keras.Model):
        image_shape, num_classes, told = (2, 2, 1), None, None

        def call(self, inputs, training=False, seed=None):
            type(self).told = inputs[1]
            return inputs[0] * 0.0

        def get_config(self):
            return {}

        @classmethod
        def from_config(cls, config):
            return cls()

    names = [99, 499, 999]
    model = kddpm.DiffusionModel(Listener(), kddpm.schedules.linear(1000).respace(names))
    model.compile(run_eagerly=True)
    model.test_step(np.zeros((64, 2, 2, 1), np.uint8))
    assert set(Listener.told.numpy()) == set(names)


@pytest.mark.parametrize("number", [np.float64, np.float16, np.int64])
def test_numbers_of_numpy_are_numbers(number):
    is_float = issubclass(number, np.floating)
    names = ("ema_momentum", "label_dropout", "clip_norm") if is_float else ("seed", "accumulation", "clip_norm")
    model = kddpm.DiffusionModel(
        OneConv(num_classes=3),
        schedules.linear(T, 1e-3, 0.5),
        **{name: number(0.5 if is_float else 1) for name in names},
    )
    model.compile("adam", jit_compile=False)
    model.fit(random_pixels(4, 4, 4, 1), np.arange(4) % 3, verbose=0)
    config = json.loads(json.dumps({name: model.get_config()[name] for name in names}))
    assert all(value == (0.5 if is_float else 1) for value in config.values())
