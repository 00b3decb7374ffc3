"""The networks and recipes of two examples of keras.io on MNIST: "Denoising Diffusion Implicit Models" (A. Béres) and
"Denoising Diffusion Probabilistic Model" (A. N. Jha), rebuilt from their descriptions, with three levels for 28 pixels.

`peers.py` starts it, with the project's `.venv`.
"""

import math
import time

import contestant
import keras
import numpy as np
import tensorflow as tf
from figures import Chain
from keras import layers, ops


class Sinusoids(layers.Layer):
    """A number (B,) to sines and cosines (B, size) of geometric frequencies between two bounds."""

    def __init__(self, size, least, most, **options):
        super().__init__(**options)
        self.frequencies = np.geomspace(least, most, size // 2).astype("float32")

    def call(self, x):
        """x (B,)."""
        angles = ops.expand_dims(ops.cast(x, "float32"), 1) * self.frequencies
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)


class Diffusion(keras.Model):
    """Trains a network on the noise and keeps an average of its weights.

    Args:
        network: from x (B, H, W, C) and `level` (B,) to the noise.
        draw: function of a batch size to `level` and alpha_bar, both (B,).
        loss: of the noise and what the network says.
        momentum: of the average, at most; it begins lower, as their many epochs are not to be had here.
    """

    def __init__(self, network, draw, loss, momentum):
        super().__init__()
        self.network, self.average = network, keras.models.clone_model(network)
        self.average.set_weights(network.get_weights())
        self._draw, self._noise_loss, self._momentum = draw, loss, momentum

    def train_step(self, x):
        """x (B, H, W, C), in the range of the network."""
        level, alpha_bar = self._draw(tf.shape(x)[0])
        a, noise = alpha_bar[:, None, None, None], tf.random.normal(tf.shape(x))
        with tf.GradientTape() as tape:
            said = self.network([tf.sqrt(a) * x + tf.sqrt(1 - a) * noise, level], training=True)
            loss = self._noise_loss(noise, said)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        taken = tf.cast(self.optimizer.iterations, tf.float32)
        momentum = tf.minimum(self._momentum, (1 + taken) / (10 + taken))
        for average, weight in zip(self.average.weights, self.network.weights, strict=True):
            average.assign(momentum * average + (1 - momentum) * weight)
        return {"loss": loss}


class Until(keras.callbacks.Callback):
    """Stops at a time, and counts steps."""

    def __init__(self, deadline):
        super().__init__()
        self.steps, self._deadline = 0, deadline

    def on_train_batch_end(self, batch, logs=None):
        """Count."""
        self.steps += 1
        self.model.stop_training = time.time() > self._deadline


def fitted(model, x, batch, optimizer, deadline):
    """Train until the deadline; returns the steps."""
    model.compile(optimizer=optimizer)
    clock = Until(deadline)
    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=0).repeat().batch(batch, drop_remainder=True)
    batches = batches.prefetch(tf.data.AUTOTUNE)
    model.fit(batches, steps_per_epoch=10**9, verbose=0, callbacks=[clock])
    return clock.steps


def chain(model, levels, alpha_bars, black=-1.0, white=1.0):
    """The `figures.Chain` of the average; `levels` (T,) are what the network is told for each t."""
    said = tf.function(lambda x, level: model.average([x, level], training=False), reduce_retracing=True)

    def eps_of(x_t, t):
        return said(tf.constant(x_t), tf.constant(levels[t], tf.float32)).numpy()

    return Chain(eps_of, alpha_bars, black, white)


def of_implicit(images, about, deadline):
    """DDIM: a U-Net of widths 32, 64, 96 without attention, absolute errors, AdamW at 1e-3 with decay 1e-4.

    Images are normalised to mean 0 and deviation 1, levels are continuous: signal rates from 0.95 down to 0.02 along a
    cosine, of which the network is told the variance of the noise. Batches of 64, an average of momentum 0.999.
    """
    mean, deviation = float(images.mean()) / 255, float(images.std()) / 255
    black, white = -mean / deviation, (1 - mean) / deviation
    x = images.astype("float32") / 255 * (white - black) + black
    first, last = math.acos(0.95), math.acos(0.02)

    def draw(batch):
        angle = first + tf.random.uniform([batch]) * (last - first)
        return tf.square(tf.sin(angle)), tf.square(tf.cos(angle))

    network = implicit_network((32, 64, 96), images.shape[1:])
    model = Diffusion(network, draw, lambda noise, said: tf.reduce_mean(tf.abs(noise - said)), 0.999)
    steps = fitted(model, x, 64, keras.optimizers.AdamW(1e-3, weight_decay=1e-4), deadline)
    angles = first + (np.arange(1000) + 1) / 1000 * (last - first)
    levels, alpha_bars = np.sin(angles) ** 2, np.cos(angles) ** 2
    return chain(model, levels, alpha_bars, black, white), steps, network.count_params()


def implicit_network(widths, shape):
    """Residual blocks with batch normalisation, two a level; the variance of the noise enters as 32 more channels."""

    def block(x, width):
        shortcut = x if x.shape[-1] == width else layers.Conv2D(width, 1)(x)
        x = layers.BatchNormalization(center=False, scale=False)(x)
        x = layers.Conv2D(width, 3, padding="same", activation="swish")(x)
        return layers.Conv2D(width, 3, padding="same")(x) + shortcut

    noisy, level = keras.Input(shape), keras.Input(())
    told = Sinusoids(32, 2 * math.pi, 2000 * math.pi)(level)
    told = layers.UpSampling2D(shape[0])(layers.Reshape((1, 1, 32))(told))
    x, skips = layers.Concatenate()([layers.Conv2D(widths[0], 1)(noisy), told]), []
    for width in widths[:-1]:
        for _ in range(2):
            x = block(x, width)
            skips.append(x)
        x = layers.AveragePooling2D(2)(x)
    for _ in range(2):
        x = block(x, widths[-1])
    for width in reversed(widths[:-1]):
        x = layers.UpSampling2D(2, interpolation="bilinear")(x)
        for _ in range(2):
            x = block(layers.Concatenate()([x, skips.pop()]), width)
    return keras.Model([noisy, level], layers.Conv2D(shape[-1], 1, kernel_initializer="zeros")(x))


def of_probabilistic(images, about, deadline):
    """DDPM: a U-Net of widths 64, 128, 256 with attention at the last, squared errors, Adam at 2e-4.

    Pixels from -1 to 1, linear betas from 1e-4 to 0.02 and T = 1000; batches of 32, an average of momentum 0.999.
    """
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def draw(batch):
        t = tf.random.uniform([batch], 0, 1000, tf.int32)
        return tf.cast(t, tf.float32), tf.gather(tf.constant(alpha_bars, tf.float32), t)

    network = probabilistic_network((64, 128, 256), images.shape[1:])
    model = Diffusion(network, draw, lambda noise, said: tf.reduce_mean(tf.square(noise - said)), 0.999)
    x = images.astype("float32") / 127.5 - 1
    steps = fitted(model, x, 32, keras.optimizers.Adam(2e-4), deadline)
    return chain(model, np.arange(1000), alpha_bars), steps, network.count_params()


class Attention(layers.Layer):
    """Self-attention over the pixels, one head, added to the input."""

    def build(self, shape):
        """Four dense layers of as many channels as the input has."""
        self.norm = layers.GroupNormalization(8)
        self.query, self.key, self.value = (layers.Dense(shape[-1]) for _ in range(3))
        self.out = layers.Dense(shape[-1], kernel_initializer="zeros")

    def call(self, x):
        """x (B, H, W, C)."""
        pixels = ops.reshape(self.norm(x), (-1, x.shape[1] * x.shape[2], x.shape[3]))
        scores = ops.matmul(self.query(pixels), ops.transpose(self.key(pixels), (0, 2, 1)))
        mixed = ops.matmul(ops.softmax(scores / math.sqrt(x.shape[3])), self.value(pixels))
        return x + ops.reshape(self.out(mixed), ops.shape(x))


def probabilistic_network(widths, shape):
    """Residual blocks with group normalisation that know t, two a level down and three up."""

    def block(x, width, attends):
        shortcut = x if x.shape[-1] == width else layers.Conv2D(width, 1)(x)
        x = layers.Activation("swish")(layers.GroupNormalization(8)(x))
        x = layers.Conv2D(width, 3, padding="same")(x)
        x = x + layers.Reshape((1, 1, width))(layers.Dense(width)(layers.Activation("swish")(told)))
        x = layers.Activation("swish")(layers.GroupNormalization(8)(x))
        x = layers.Conv2D(width, 3, padding="same", kernel_initializer="zeros")(x) + shortcut
        return Attention()(x) if attends else x

    noisy, t = keras.Input(shape), keras.Input(())
    told = layers.Dense(4 * widths[0], activation="swish")(Sinusoids(4 * widths[0], 1e-4, 1.0)(t))
    told = layers.Dense(4 * widths[0])(told)
    x = layers.Conv2D(widths[0], 3, padding="same")(noisy)
    skips = [x]
    for width in widths:
        attends = width == widths[-1]
        for _ in range(2):
            x = block(x, width, attends)
            skips.append(x)
        if not attends:
            x = layers.Conv2D(width, 3, strides=2, padding="same")(x)
            skips.append(x)
    for attends in (True, False):
        x = block(x, widths[-1], attends)
    for width in reversed(widths):
        for _ in range(3):
            x = block(layers.Concatenate()([x, skips.pop()]), width, width == widths[-1])
        if width != widths[0]:
            x = layers.Conv2D(width, 3, padding="same")(layers.UpSampling2D(2)(x))
    x = layers.Activation("swish")(layers.GroupNormalization(8)(x))
    return keras.Model([noisy, t], layers.Conv2D(shape[-1], 3, padding="same", kernel_initializer="zeros")(x))


if __name__ == "__main__":
    contestant.run({"keras-ddim": of_implicit, "keras-ddpm": of_probabilistic})
