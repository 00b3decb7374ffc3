"""The least that a `DiffusionModel` takes as a network; it traces in a moment."""

import keras
import tensorflow as tf

from kddpm.layers import Dropout

T = 20


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
