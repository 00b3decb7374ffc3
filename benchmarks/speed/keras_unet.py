"""The network of kddpm/networks/unet.py made of Keras's own layers, as one would write it without kddpm."""

import keras
from keras import layers, ops

from kddpm.networks.layers import TimestepEmbedding


def unet(image_shape, width, multipliers, blocks_per_level, attention_resolutions, groups, dropout):
    """A functional model of [x_t (B, H, W, C), t (B,)] that predicts the noise; arguments as of `kddpm.UNet`."""
    x_t, t = keras.Input(image_shape), keras.Input((), dtype="int32")
    embedding = layers.Activation("silu")(TimestepEmbedding(width)(t))

    def norm(h):
        return layers.GroupNormalization(groups, epsilon=1e-6)(h)

    def conv(h, channels, stride=1):
        return layers.Conv2D(channels, 3, stride, padding="same")(h)

    def attention(h):
        channels, pixels = h.shape[-1], layers.Reshape((-1, h.shape[-1]))(norm(h))
        query, key, value = ops.split(layers.Dense(3 * channels)(pixels), 3, axis=-1)
        weights = layers.Softmax()(ops.matmul(query, ops.swapaxes(key, 1, 2)) / channels**0.5)
        attended = layers.Dense(channels)(ops.matmul(weights, value))
        return h + layers.Reshape(h.shape[1:])(attended)

    def block(h, level, attends):
        channels, x = width * multipliers[level], h
        h = conv(layers.Activation("silu")(norm(h)), channels)
        h = h + layers.Reshape((1, 1, channels))(layers.Dense(channels)(embedding))
        h = conv(layers.Dropout(dropout)(layers.Activation("silu")(norm(h))), channels)
        h = h + (x if x.shape[-1] == channels else layers.Dense(channels)(x))
        return attention(h) if attends else h

    last = len(multipliers) - 1
    attends = [max(image_shape[:2]) // 2**level in attention_resolutions for level in range(last + 1)]
    h = conv(x_t, width)
    skips = [h]
    for level in range(last + 1):
        for _ in range(blocks_per_level):
            skips.append(h := block(h, level, attends[level]))
        if level < last:
            skips.append(h := conv(h, h.shape[-1], stride=2))
    h = block(block(h, last, True), last, False)
    for level in reversed(range(last + 1)):
        for _ in range(blocks_per_level + 1):
            h = block(layers.Concatenate()([h, skips.pop()]), level, attends[level])
        if level > 0:
            h = conv(layers.UpSampling2D(2)(h), h.shape[-1])
    return keras.Model([x_t, t], conv(layers.Activation("silu")(norm(h)), image_shape[-1]))
