"""The same run twice; and saved, loaded and gone on with."""

import inspect

import keras
import numpy as np
import pytest
from helpers.comparing import assert_same, distance
from helpers.image_samples import random_pixels
from helpers.processes import python
from helpers.small_models import (
    SHAPE,
    small,
    train,
    weights,
)

import kddpm


def unet_model(make_model):
    model = make_model({"multipliers": (1,), "dropout": 0.3})
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    return model


def test_training_is_a_function_of_the_seed():
    x = random_pixels(12, *SHAPE)
    models = [small(keras.optimizers.Adam(1e-2), {"dropout": 0.3}, seed=seed) for seed in (3, 3, 4)]
    losses = [train(model, x)["loss"] for model in models]
    assert losses[0] == losses[1]
    assert_same(weights(models[0]), weights(models[1]))
    assert distance(weights(models[0]), weights(models[2])) > 1e-3


def test_a_saved_model_continues_as_if_it_had_never_stopped(make_model, tmp_path):
    x = random_pixels(24, 8, 8, 1)
    uninterrupted = unet_model(make_model)
    train(uninterrupted, x)

    first = unet_model(make_model)
    train(first, x[:12])
    first.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(123)
    second = keras.models.load_model(tmp_path / "model.keras")
    assert int(second.step.numpy()) == int(second.optimizer.iterations.numpy()) == 3
    assert_same([v.numpy() for v in second.optimizer.variables], [v.numpy() for v in first.optimizer.variables])
    train(second, x[12:])
    assert_same(weights(second), weights(uninterrupted))
    assert_same(second.ema_network.get_weights(), uninterrupted.ema_network.get_weights())


def test_a_saved_model_is_loaded_by_keras_alone(make_model, tmp_path):
    model = make_model({"num_classes": 3, "dropout": 0.2}, seed=7, ema_momentum=0.5, clip_norm=None)
    model.compile(keras.optimizers.Adam(0.5), jit_compile=False)
    train(model, random_pixels(8, 8, 8, 1), np.arange(8) % 3)
    model.save(tmp_path / "model.keras")
    script = """
import sys, keras, kddpm, numpy as np
model = keras.models.load_model(sys.argv[1] + "/model.keras")
np.save(sys.argv[1] + "/pictures.npy", model.generate(range(4)))
print(model.seed, model.ema_momentum, model.clip_norm, model.schedule.num_timesteps, int(model.step.numpy()))
print(float(model.optimizer.learning_rate.numpy()))
"""
    run = python("-c", script, tmp_path)
    assert run.stdout.split() == ["7", "0.5", "None", "20", "2", "0.5"], run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "pictures.npy"), model.generate(range(4)))


CHOICES = [
    ({"prediction": "v", "weighting": "min_snr", "variance": "large"}, {}),
    ({"weighting": "hybrid", "variance": "learned", "timestep_sampling": "importance"}, {"out_channels": 2}),
    ({"prediction": "mu", "weighting": "vlb", "label_dropout": 0.25}, {"num_classes": 3}),
]


@pytest.mark.parametrize(("choices", "network"), CHOICES)
def test_choices_survive_saving(choices, network, tmp_path):
    x, y = random_pixels(8, *SHAPE), np.arange(8) % 3
    model = small(network=network, **choices)
    train(model, x, y)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    config = model.get_config()
    assert set(config) == set(inspect.signature(kddpm.DiffusionModel).parameters)
    assert {name: config[name] for name in choices} == choices
    assert (again.objective, again.label_dropout) == (model.objective, model.label_dropout)
    assert choices.items() <= {**vars(again.objective), "label_dropout": again.label_dropout}.items()
    assert {**again.get_config(), "network": None} == {**config, "network": None}
    assert_same([v.numpy() for v in again.variables], [v.numpy() for v in model.variables])
    np.testing.assert_array_equal(again.generate(range(4), num_steps=5), model.generate(range(4), num_steps=5))
    for trained in (model, again):
        train(trained, x, y)
    assert_same([v.numpy() for v in again.variables], [v.numpy() for v in model.variables])
    if "timestep_sampling" in choices:
        assert again.loss_counts.numpy().sum() == 16
