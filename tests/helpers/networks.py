"""The least that a `DiffusionModel` takes as a network; it traces in a moment."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import kddpm
from kddpm.networks.layers import Dropout
from kddpm.runs import build
from kddpm.theory import schedules
from kddpm.theory.parametrization import Objective

T = 20
LEARNED = Objective(weighting="hybrid", variance="learned")  # of networks with twice the channels


@keras.saving.register_keras_serializable("tests")
class OneConv(keras.Model):
    """One 3x3 convolution of x_t, shifted by what tables say of t, in 0 .. num_timesteps - 1, and of the label."""

    def __init__(
        self, image_shape=(4, 4, 1), num_classes=None, dropout=0.0, out_channels=None, num_timesteps=T, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_timesteps = num_timesteps
        self.image_shape, self.num_classes, self.rate = tuple(image_shape), num_classes, dropout
        self.out_channels = channels = out_channels or image_shape[-1]
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)
        self.conv = keras.layers.Conv2D(channels, 3, padding="same", dtype=self.dtype_policy)
        self.conv.build((None, *image_shape))
        self.timestep = keras.layers.Embedding(num_timesteps, channels, dtype=self.dtype_policy)
        self.timestep.build((None,))
        if num_classes:
            self.label = keras.layers.Embedding(num_classes + 1, channels, dtype=self.dtype_policy)
            self.label.build((None,))
        self.built = True

    def call(self, inputs, training=False, seed=None):
        x_t, t, *label = inputs
        shift = self.timestep(t) + (self.label(label[0]) if label else 0)
        return self.conv(self.dropout(x_t, seed=seed, training=training)) + shift[:, tf.newaxis, tf.newaxis]

    def get_config(self):
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "dropout": self.rate,
            "out_channels": self.out_channels,
            "num_timesteps": self.num_timesteps,
        }


def one_conv_model(network=None, **choices):
    """A model around the least network; its pictures are neither empty nor all black and white."""
    schedule = schedules.linear(T, 1e-3, 0.5)
    model = kddpm.DiffusionModel(OneConv(**{"image_shape": (8, 8, 2), **(network or {})}), schedule, **choices)
    rng = np.random.default_rng(0)
    for weight in model.ema_network.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.1)
        if len(weight.shape) == 4:  # the kernel: about what comes in, which is mostly noise
            weight.assign(weight + np.pad(np.eye(*weight.shape[2:])[None, None], [[1, 1], [1, 1], [0, 0], [0, 0]]))
    return model


def least_unet(image_shape, width, dropout, num_classes, out_channels, dtype, **_):
    """What stands in for a `UNet` where a test is about something else; another width is another shape of a weight."""
    return OneConv(image_shape, num_classes, dropout, out_channels, num_timesteps=T + width, dtype=dtype)


@contextlib.contextmanager
def of_least_networks():
    """Within the block, runs are of `least_unet`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "UNet", least_unet)
        patch.setattr(build, "_parameters", lambda *_: 0)  # the weights hold fewer than the configuration says
        yield
