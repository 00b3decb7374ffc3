import contextlib
import gc
import os
import pathlib
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# For the programs that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(str(pathlib.Path(__file__).parents[level]) for level in (1, 0))

import keras
import numpy as np
import pytest

import kddpm
from kddpm.networks import levels

# A shell starts what runs in the background deaf to Ctrl-C, and so are the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "image_shape": (8, 8, 1),
    "width": 8,
    "multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_resolutions": (4,),
    "dropout": 0.0,
    "groups": 4,
}


@pytest.fixture(autouse=True, scope="module")
def less_to_collect():
    """What was there before a file is left out of garbage collections: TensorFlow never frees the graphs of before."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def known_state():
    """Every test starts from the same seed and float32, whatever ran before it."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


def _tiny(**changes):
    options = {**TINY, **changes}
    if "attention_resolutions" not in changes:
        with contextlib.suppress(TypeError):  # of arguments that are wrong on purpose
            sides = levels.sides(options["image_shape"][:2], len(options["multipliers"]))
            options["attention_resolutions"] = [side for side in TINY["attention_resolutions"] if side in sides]
    return kddpm.UNet(**options)


@pytest.fixture
def make_unet():
    """A factory of small U-Nets; its arguments replace those of `TINY`."""
    return _tiny


@pytest.fixture
def make_model(make_unet):
    """A factory of small models, T = 20; `unet` replaces arguments of the network, the rest are the model's own."""

    def make(unet=None, **changes):
        keras.utils.set_random_seed(0)
        return kddpm.DiffusionModel(make_unet(**(unet or {})), kddpm.schedules.linear(20, 1e-3, 0.5), **changes)

    return make


def _give_weights(model):
    """Averaged weights as after training: none of them zero, so that pictures depend on everything."""
    rng = np.random.default_rng(0)
    for weight in model.ema_network.weights:
        fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 10
        center = 1.0 if weight.name == "scale" else 0.0
        weight.assign(center + rng.normal(size=weight.shape) / np.sqrt(fan_in))


@pytest.fixture
def give_weights():
    """Gives a model weights like trained ones."""
    return _give_weights


def _trained_like(**changes):
    model = kddpm.DiffusionModel(_tiny(**changes), kddpm.schedules.linear(20, 1e-3, 0.5))
    _give_weights(model)
    return model


@pytest.fixture(scope="session")
def trained_like():
    """A small model, T = 20, whose averaged weights look trained. Tests that use it leave those alone."""
    return _trained_like()


@pytest.fixture(scope="session")
def trained_like_with_classes():
    """The same in colour, with three classes, on one level."""
    return _trained_like(image_shape=(8, 8, 3), multipliers=(1,), attention_resolutions=(8,), num_classes=3)
