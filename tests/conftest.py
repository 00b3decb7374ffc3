import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])  # for the programs that tests start

import keras
import pytest

import kddpm

TINY = {
    "image_shape": (8, 8, 1),
    "width": 8,
    "multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_resolutions": (4,),
    "dropout": 0.0,
    "groups": 4,
}


@pytest.fixture(autouse=True)
def known_state():
    """Every test starts from the same seed and float32, whatever ran before it."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def make_unet():
    """A factory of small U-Nets; its arguments replace those of `TINY`."""
    return lambda **changes: kddpm.UNet(**{**TINY, **changes})


@pytest.fixture
def make_model(make_unet):
    """A factory of small models, T = 20; `unet` replaces arguments of the network, the rest are the model's own."""

    def make(unet=None, **changes):
        keras.utils.set_random_seed(0)
        return kddpm.DiffusionModel(make_unet(**(unet or {})), kddpm.schedules.linear(20, 1e-3, 0.5), **changes)

    return make
