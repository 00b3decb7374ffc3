"""The parts of the U-Net of Ho et al. 2020 (appendix B), as Keras layers in plain `keras.ops`.

Under TensorFlow on a CPU the training and the sampling of `DiffusionModel` let `fused` compute the normalisation and
what follows it.

Feature maps are (B, H, W, C); `embedding` is the timestep embedding after its SiLU, (B, E). Statistics, softmax and
random bits are float32 or integers under every dtype policy. The layers compute the same as the paper's code, at lower
cost: the normalisation passes over the feature map four times, upsampling and the convolution after it are one
operation, and dropout uses 16 bits of a hash per element instead of 32 of a random generator.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Config, Shape, Tensor
from kddpm.networks import fused

CHANNELS_LAST = {"data_format": "channels_last"}  # of every convolution, whatever Keras's image_data_format is
_for_devices = contextvars.ContextVar("for_devices", default=False)
_tabled_timesteps: contextvars.ContextVar[int | None] = contextvars.ContextVar("tabled_timesteps", default=None)


@contextlib.contextmanager
def for_devices(tabled_timesteps: int | None = None) -> Iterator[None]:
    """Let layers take the form that LiteRT's XNNPACK runs fastest, inside the context. The results are the same.

    Args:
        tabled_timesteps: number of timesteps, from 0, whose sinusoids are looked up in a constant, for GPUs, whose sine
            of a large angle is coarse (half precision cannot hold the angle); None = they are computed.
    """
    before = _for_devices.set(True), _tabled_timesteps.set(tabled_timesteps)
    try:
        yield
    finally:
        _for_devices.reset(before[0])
        _tabled_timesteps.reset(before[1])


def check_groups(groups: int, channels: int) -> None:
    """Check that a normalisation of this many groups fits the channels.

    Raises:
        InputError: the groups do not divide them.
    """
    if channels % groups:
        raise InputError("groups", "must divide the channels", f"groups={groups}, channels={channels}")


def fan_avg(scale: float = 1.0) -> keras.initializers.Initializer:
    """Return the kernel initialiser of Ho et al.'s code: uniform, of variance scale / average fan; scale 0 = 1e-10."""
    return keras.initializers.VarianceScaling(scale or 1e-10, mode="fan_avg", distribution="uniform")


def sinusoidal_embedding(t: Tensor, width: int) -> Tensor:
    """Return sines, then cosines, of t at `width // 2` frequencies from 1 down to 1/10,000 (Vaswani et al. 2017).

    The frequencies are a geometric sequence that includes both ends.

    Args:
        t: integers (B,).
        width: number of channels; an odd number ends in a zero.

    Returns:
        float32 (B, width).
    """
    half = width // 2
    frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / max(half - 1, 1)).astype("float32")
    if (count := _tabled_timesteps.get()) is not None:
        angles = np.arange(count, dtype=np.float32)[:, np.newaxis] * frequencies
        table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return ops.take(np.pad(table, [[0, 0], [0, width % 2]]), t, axis=0)
    angles = ops.expand_dims(ops.cast(t, "float32"), 1) * frequencies
    return ops.pad(ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1), [[0, 0], [0, width % 2]])


@keras.saving.register_keras_serializable("kddpm")
class TimestepEmbedding(keras.layers.Layer):
    """Embeds t (B,) as a vector (B, 4 width): sinusoids, dense, SiLU, dense.

    Args:
        width: number of sinusoids.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.width = width = arguments.count("width", width)
        self.hidden = _dense(self, 4 * width, "hidden", activation="silu")
        self.out = _dense(self, 4 * width, "out")

    def build(self, input_shape: Shape) -> None:
        """Create the weights."""
        self.hidden.build((None, self.width))
        self.out.build((None, 4 * self.width))

    def call(self, t: Tensor) -> Tensor:
        """Return the embeddings of t (B,), (B, 4 width)."""
        return self.out(self.hidden(ops.cast(sinusoidal_embedding(t, self.width), self.compute_dtype)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (B, 4 width)."""
        return (input_shape[0], 4 * self.width)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("kddpm")
class GroupNormalization(keras.layers.Layer):
    """Group normalisation (Wu & He 2018) of a feature map (B, H, W, C), computed from channel means.

    Two small constant matrices, (C, G) and (G, C), average the channel means (B, 1, 1, C) within groups and copy the
    result back to the channels. The variances come from the centred map in the same way, so a large mean costs no
    digits. keras.layers.GroupNormalization works on a five-dimensional view and takes about as long as a 3x3
    convolution.

    Args:
        groups: number of groups; must divide C.
        epsilon: added to the variance.

    Raises:
        InputError: the groups do not divide the channels.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.groups = arguments.count("groups", groups)
        self.epsilon = arguments.number("epsilon", epsilon)

    def build(self, input_shape: Shape) -> None:
        """Create scale and offset."""
        channels = input_shape[-1]
        check_groups(self.groups, channels)
        size = channels // self.groups
        # No autocast: statistics, scale and offset stay float32 under mixed precision.
        self.scale = self.add_weight(shape=(channels,), initializer="ones", autocast=False, name="scale")
        self.offset = self.add_weight(shape=(channels,), initializer="zeros", autocast=False, name="offset")
        self._channel_to_group = np.kron(np.eye(self.groups), np.full((size, 1), 1 / size)).astype("float32")
        self._group_to_channel = np.kron(np.eye(self.groups), np.ones((1, size))).astype("float32")

    def call(self, x: Tensor) -> Tensor:
        """Return x, normalised."""
        if fused.is_allowed(x):
            return fused.normalized(x, self.scale, self.offset, self.groups, self.epsilon)
        h = ops.cast(x, "float32")
        mean = self._average_groups(ops.mean(h, axis=(1, 2), keepdims=True))
        centred = h - mean
        variance = self._average_groups(ops.mean(ops.square(centred), axis=(1, 2), keepdims=True))
        scale = ops.rsqrt(variance + self.epsilon) * self.scale
        if _for_devices.get():  # XNNPACK squares a difference in one pass; storing it as well would take a second
            y = h * scale + (self.offset - mean * scale)
        else:
            y = centred * scale + self.offset
        return ops.cast(y, self.compute_dtype)

    def activated(
        self,
        x: Tensor,
        shift: Tensor = None,
        dropout: "Dropout | None" = None,
        seed: Tensor = None,
        training: bool = False,
    ) -> Tensor:
        """Return dropout(SiLU(norm(x + shift))) of x (B, H, W, C); shift: (B, C), seed: int32 (B,), of the dropout."""
        dropout = dropout if training else None
        if fused.is_allowed(x) and (seed is not None or dropout is None):
            kept = 2**16 if dropout is None else dropout.kept_of_65536
            weights = self.scale, self.offset, self.groups, self.epsilon
            return fused.normalized(x, *weights, activate=True, shift=shift, kept_of_65536=kept, seed=seed)
        h = ops.silu(self(x if shift is None else x + ops.expand_dims(shift, (1, 2))))
        return h if dropout is None else dropout(h, seed=seed, training=True)

    def _average_groups(self, channel_means):
        """Return for each channel the mean of its group, (B, 1, 1, C)."""
        group_means = ops.einsum("bhwc,cg->bhwg", channel_means, self._channel_to_group)
        return ops.einsum("bhwg,gc->bhwc", group_means, self._group_to_channel)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("kddpm")
class Dropout(keras.layers.Layer):
    """Dropout whose mask for an image is a function of a seed, one per image.

    So the mask of an image does not depend on its batch or replica. Random words are a hash of the seed and the
    position in the image: one pass over memory under XLA, whose own generator takes a hundred times as long on a CPU.
    One word of 32 bits serves two elements, so the rate is rounded to a multiple of 2^-16; kept elements are scaled by
    exactly the rounded rate.

    Args:
        rate: probability that an element becomes zero, in [0, 1).

    Raises:
        InputError: the rate lies outside [0, 1).
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate = arguments.number("dropout", rate)
        if not 0 <= rate < 1:
            raise InputError("dropout", "must lie in [0, 1)", rate)
        self.kept_of_65536 = max(1, round((1 - rate) * 2**16))
        self.built = True

    def call(self, x: Tensor, seed: Tensor = None, training: bool = False) -> Tensor:
        """Return x (B, ...), with elements dropped in training; seed: int32 (B,), None = a random one."""
        if not training or not self.rate:
            return x
        shape = ops.shape(x)
        if seed is None:
            seed = keras.random.randint(shape[:1], 0, 2**31 - 1, dtype="int32")
        kept = fused.dropout_mask(seed, shape, self.kept_of_65536)
        return x * ops.cast(kept, x.dtype) * (2**16 / self.kept_of_65536)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("kddpm")
class Downsample(keras.layers.Layer):
    """Halves a feature map (B, H, W, C) to (B, H/2, W/2, C) by a 3x3 convolution of stride 2; H and W are even."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def build(self, input_shape: Shape) -> None:
        """Create the weights of the convolution."""
        self.conv = _conv(self, input_shape[-1], "conv", strides=2)
        self.conv.build(input_shape)

    def call(self, x: Tensor) -> Tensor:
        """Return x at half the height and width."""
        return self.conv(x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (B, H/2, W/2, C)."""
        batch, height, width, channels = input_shape
        return (batch, height // 2, width // 2, channels)


@keras.saving.register_keras_serializable("kddpm")
class Upsample(keras.layers.Layer):
    """Doubles (B, H, W, C) to (B, 2H, 2W, C): nearest neighbour x2, then a 3x3 convolution, as one operation.

    Nearest neighbour copies each pixel to a 2x2 box, so an output pixel depends on 2x2 input pixels, weighted by sums
    of the kernel's elements: 4 products instead of 9. That is a transposed convolution of stride 2 whose 4x4 kernel is
    the 3x3 kernel convolved with the box; or four 2x2 convolutions, one per position in the box (see `for_devices`).
    """

    def build(self, input_shape: Shape) -> None:
        """Create the kernel of the 3x3 convolution."""
        channels = input_shape[-1]
        self.kernel = self.add_weight(shape=(3, 3, channels, channels), initializer=fan_avg(), name="kernel")
        self.bias = self.add_weight(shape=(channels,), initializer="zeros", name="bias")

    def call(self, x: Tensor) -> Tensor:
        """Return x at twice the height and width."""
        return self._four_convolutions(x) if _for_devices.get() else self._transposed_convolution(x)

    def _transposed_convolution(self, x):
        kernel = ops.transpose(ops.flip(self.kernel, (0, 1)), (0, 1, 3, 2))
        rows = ops.pad(kernel, [[1, 0], [0, 0], [0, 0], [0, 0]]) + ops.pad(kernel, [[0, 1], [0, 0], [0, 0], [0, 0]])
        boxed = ops.pad(rows, [[0, 0], [1, 0], [0, 0], [0, 0]]) + ops.pad(rows, [[0, 0], [0, 1], [0, 0], [0, 0]])
        return ops.conv_transpose(x, boxed, strides=2, padding="same", **CHANNELS_LAST) + self.bias

    def _four_convolutions(self, x):
        _, height, width, channels = x.shape
        padded = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])

        def halves(kernel, axis):
            """Return the kernels of the first and the second pixel of a box along an axis: 3 elements become 2."""
            first, middle, last = ops.split(kernel, 3, axis)
            return ops.concatenate([first, middle + last], axis), ops.concatenate([first + middle, last], axis)

        rows = []
        for i, of_row in enumerate(halves(self.kernel, 0)):
            row = [
                ops.conv(padded[:, i : i + height + 1, j : j + width + 1], kernel, padding="valid", **CHANNELS_LAST)
                + self.bias
                for j, kernel in enumerate(halves(of_row, 1))
            ]
            # Concatenated along the channels, so that a reshape interleaves them along the width.
            rows.append(ops.reshape(ops.concatenate(row, axis=3), (-1, height, 1, 2 * width * channels)))
        return ops.reshape(ops.concatenate(rows, axis=2), (-1, 2 * height, 2 * width, channels))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (B, 2H, 2W, C)."""
        batch, height, width, channels = input_shape
        return (batch, 2 * height, 2 * width, channels)


@keras.saving.register_keras_serializable("kddpm")
class AttentionBlock(keras.layers.Layer):
    """Self-attention with one head over the pixels of a feature map, added to the input.

    Args:
        groups: number of groups of the normalisation.
    """

    def __init__(self, groups: int = 32, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups = arguments.count("groups", groups)
        self.norm = GroupNormalization(groups, name="norm", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Create the weights of the normalisation and the projections."""
        channels = input_shape[-1]
        self.norm.build(input_shape)
        # One product for query, key and value; scale 2 because its average fan is 2C, while that of each part is C.
        self.qkv = _dense(self, 3 * channels, "qkv", scale=2.0)
        self.qkv.build((None, None, channels))
        self.out = _dense(self, channels, "out", scale=0.0)
        self.out.build((None, None, channels))

    def call(self, x: Tensor) -> Tensor:
        """Return x + attention(norm(x)), (B, H, W, C)."""
        _, height, width, channels = x.shape
        h = ops.reshape(self.norm(x), (-1, height * width, channels))
        qkv = self.qkv(h)
        if _for_devices.get():  # sliced, not split: see `sampling.walks.halves`
            query, key, value = (qkv[:, :, start : start + channels] for start in range(0, 3 * channels, channels))
        else:  # the gradient of a slice pads with zeros and adds, that of a split is one concatenation
            query, key, value = ops.split(qkv, 3, axis=-1)
        logits = ops.matmul(query * channels**-0.5, ops.transpose(key, (0, 2, 1)))
        weights = ops.cast(ops.softmax(ops.cast(logits, "float32"), axis=-1), self.compute_dtype)
        return x + ops.reshape(self.out(ops.matmul(weights, value)), (-1, height, width, channels))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable("kddpm")
class ResidualBlock(keras.layers.Layer):
    """Norm, SiLU, conv; plus the timestep; norm, SiLU, dropout, conv; plus the input; then optional attention.

    Args:
        channels: number of output channels; a 1x1 convolution maps an input with another number to it.
        groups: number of groups of the normalisations.
        dropout: dropout rate before the second convolution.
        attention: whether an `AttentionBlock` ends the block.
    """

    def __init__(self, channels: int, groups: int = 32, dropout: float = 0.0, attention: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels = arguments.count("channels", channels)
        self.groups = groups = arguments.count("groups", groups)
        self.dropout_rate = arguments.number("dropout", dropout)
        self.norm_1 = GroupNormalization(groups, name="norm_1", dtype=self.dtype_policy)
        self.conv_1 = _conv(self, channels, "conv_1")
        self.timestep = _dense(self, channels, "timestep")
        self.norm_2 = GroupNormalization(groups, name="norm_2", dtype=self.dtype_policy)
        self.dropout = Dropout(dropout, name="dropout", dtype=self.dtype_policy)
        self.conv_2 = _conv(self, channels, "conv_2", scale=0.0)
        self.shortcut: keras.layers.Layer | None = None
        self.attention = AttentionBlock(groups, name="attention", dtype=self.dtype_policy) if attention else None

    def build(self, x_shape: Shape, embedding_shape: Shape) -> None:
        """Create the weights."""
        inner_shape = (*x_shape[:-1], self.channels)
        self.norm_1.build(x_shape)
        self.conv_1.build(x_shape)
        self.timestep.build(embedding_shape)
        self.norm_2.build(inner_shape)
        self.conv_2.build(inner_shape)
        if x_shape[-1] != self.channels:
            self.shortcut = _dense(self, self.channels, "shortcut")
            self.shortcut.build(x_shape)
        if self.attention is not None:
            self.attention.build(inner_shape)

    def call(self, x: Tensor, embedding: Tensor, seed: Tensor = None, training: bool = False) -> Tensor:
        """Return (B, H, W, channels) from x (B, H, W, C), the embedding (B, E) and dropout seeds int32 (B,)."""
        h = self.conv_1(self.norm_1.activated(x))
        h = self.norm_2.activated(h, self.timestep(embedding), self.dropout, seed, training)
        h = self.conv_2(h) + (x if self.shortcut is None else self.shortcut(x))
        return h if self.attention is None else self.attention(h)

    def compute_output_shape(self, x_shape: Shape, embedding_shape: Shape) -> Shape:
        """Return (B, H, W, channels)."""
        return (*x_shape[:-1], self.channels)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "dropout": self.dropout_rate,
            "attention": self.attention is not None,
        }


def _conv(layer, channels, name, strides=1, scale=1.0):
    """Return a 3x3 convolution with the dtype policy of `layer`."""
    return keras.layers.Conv2D(
        channels,
        3,
        strides,
        "same",
        **CHANNELS_LAST,
        kernel_initializer=fan_avg(scale),
        name=name,
        dtype=layer.dtype_policy,
    )


def _dense(layer, units, name, activation=None, scale=1.0):
    """Return a dense layer with the dtype policy of `layer`."""
    return keras.layers.Dense(
        units, activation=activation, kernel_initializer=fan_avg(scale), name=name, dtype=layer.dtype_policy
    )
