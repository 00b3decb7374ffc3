"""Networks that nothing of kddpm made, as small as they can be."""

import keras
import numpy as np
from keras import layers

import kddpm

T, SHAPE = 10, (8, 8, 1)


def functional(inner=None, shape=SHAPE, channels=1, classes=None, rows=None, timesteps=T, **attributes):
    """A functional model, with a layer or function `inner` in its middle, and a table of `rows` for labels."""
    x_t, t = keras.Input(shape), keras.Input((), dtype="int32")
    inputs, shift = [x_t, t], layers.Embedding(timesteps, 8)(t)
    if classes:
        inputs.append(keras.Input((), dtype="int32"))
        shift = shift + layers.Embedding(rows or classes + 1, 8)(inputs[-1])
    h = layers.Conv2D(8, 3, padding="same")(x_t) + layers.Reshape((1, 1, 8))(shift)
    h = h if inner is None else inner(h)
    network = keras.Model(inputs, layers.Conv2D(channels, 3, padding="same")(h))
    for name, value in attributes.items():
        setattr(network, name, value)
    return network


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model whose layers are built by its first call."""

    image_shape = SHAPE

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.embed, self.conv_in = layers.Embedding(T, width), layers.Conv2D(width, 3, padding="same")
        self.conv_out = layers.Conv2D(1, 3, padding="same")

    def call(self, inputs):
        x_t, t = inputs
        return self.conv_out(keras.ops.silu(self.conv_in(x_t) + self.embed(t)[:, None, None]))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def model(network, optimizer="adam", **choices):
    """A compiled `DiffusionModel` of T = 10 around a network."""
    result = kddpm.DiffusionModel(network, kddpm.schedules.cosine(T), **choices)
    result.compile(optimizer, jit_compile=False)
    return result


def everything(model):
    """The values of all variables: of network, average and optimizer."""
    kept = [*model.network.variables, *model.ema_network.variables, *model.optimizer.variables]
    return [np.array(variable) for variable in kept]


@keras.saving.register_keras_serializable("tests")
class Busy(layers.Layer):
    """A layer that adds to the loss, counts its calls, remembers the largest value and has a metric."""

    def __init__(self, added=0.0, **kwargs):
        super().__init__(**kwargs)
        self.added = added
        self.size = keras.metrics.Mean(name="size")

    def build(self, input_shape):
        state = {"shape": (), "trainable": False}
        self.calls = self.add_weight(dtype="int32", initializer="zeros", name="calls", **state)
        self.largest = self.add_weight(initializer="zeros", name="largest", **state)

    def call(self, x, training=False):
        self.add_loss(keras.ops.convert_to_tensor(self.added))
        if training:
            largest = keras.ops.max(keras.ops.abs(keras.ops.cast(x, "float32")))
            self.calls.assign_add(1)
            self.largest.assign(keras.ops.maximum(self.largest, largest))
            self.size.update_state(largest)
        return x

    def get_config(self):
        return {**super().get_config(), "added": self.added}
