"""The U-Net of Ho et al. 2020 (appendix B): residual blocks, attention at chosen resolutions, skip connections."""

import itertools
import math
from collections.abc import Sequence

import keras
from keras import ops

from kddpm.base import arguments, settings
from kddpm.base.errors import InputError
from kddpm.base.types import Config, Shape, Tensor
from kddpm.networks import levels
from kddpm.networks.layers import (
    CHANNELS_LAST,
    Downsample,
    GroupNormalization,
    ResidualBlock,
    TimestepEmbedding,
    Upsample,
    check_groups,
    fan_avg,
)

_PAPERS_ATTENTION = 16


@keras.saving.register_keras_serializable("kddpm")
class UNet(keras.Model):
    """A U-Net that predicts the noise in x_t: `unet([x_t, t])`, or with classes `unet([x_t, t, label])`.

    The defaults, width 128, multipliers (1, 2, 2, 2), two blocks a level and attention at 16, give the network of the
    paper's CIFAR-10 experiments with 35,746,307 parameters.

    Args:
        image_shape: (H, W, C) of an image; H and W divisible by 2^(levels - 1).
        width: channels of the first level.
        multipliers: for each level its channels over `width`; each level but the last halves H and W.
        blocks_per_level: residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: levels whose larger side, in pixels, is listed here end each block with attention.
            None = 16, if a level has that size. The innermost blocks have attention in any case.
        dropout: dropout rate of the residual blocks.
        num_classes: number of classes, None = unconditional. The label `num_classes` means "no class", for label
            dropout and classifier-free guidance.
        groups: groups of the normalisations; None = 32 if every group then has four channels, else the largest smaller
            power of two for which that holds.
        out_channels: None = C; 2 C for a learned variance.

    Raises:
        InputError: a number that is no integer or too small, H or W that cannot be halved often enough, attention at a
            size that no level has, groups that do not divide the channels, or weights that would not be float32.

    Example:
        >>> unet = kddpm.UNet(image_shape=(32, 32, 3))
        >>> unet.count_params()
        35746307
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks_per_level: int = 2,
        attention_resolutions: Sequence[int] | None = None,
        dropout: float = 0.1,
        num_classes: int | None = None,
        groups: int | None = None,
        out_channels: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        settings.check_policy(self.dtype_policy)
        self.multipliers = arguments.counts("multipliers", multipliers)
        if not self.multipliers:
            raise InputError("multipliers", "must be at least one", "none")
        self.image_shape = _checked_image_shape(image_shape)
        self.width = arguments.count("width", width)
        self.blocks_per_level = arguments.count("blocks_per_level", blocks_per_level)
        self.attention_resolutions = _attention_resolutions(
            self.image_shape, len(self.multipliers), attention_resolutions
        )
        levels.check(self.image_shape[:2], len(self.multipliers), self.attention_resolutions, "image_shape")
        self.dropout = arguments.number("dropout", dropout)
        self.num_classes = None if num_classes is None else arguments.count("num_classes", num_classes)
        channels = [self.width, *(self.width * m for m in self.multipliers)]
        self.groups = _default_groups(channels) if groups is None else arguments.count("groups", groups)
        for number in channels:
            check_groups(self.groups, number)
        self.out_channels = (
            self.image_shape[-1] if out_channels is None else arguments.count("out_channels", out_channels)
        )
        self._make_layers()
        self.build()

    def _make_layers(self):
        policy = self.dtype_policy
        self.embed_timestep = TimestepEmbedding(self.width, name="embed_timestep", dtype=policy)
        self.embed_label = None
        if self.num_classes:
            # N(0, 1), as in guided-diffusion. In Keras's U(-0.05, 0.05) the label is lost beside the timestep at first:
            # of MNIST after ten minutes 75 % of the pictures are of their class instead of 91 % (docs/results.md).
            self.embed_label = keras.layers.Embedding(
                self.num_classes + 1,
                4 * self.width,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
                name="embed_label",
                dtype=policy,
            )
        self.conv_in = keras.layers.Conv2D(
            self.width, 3, padding="same", **CHANNELS_LAST, kernel_initializer=fan_avg(), name="conv_in", dtype=policy
        )
        attends = levels.with_attention(self.image_shape[:2], len(self.multipliers), self.attention_resolutions)

        def block(level, name, attention=None):
            return ResidualBlock(
                self.width * self.multipliers[level],
                groups=self.groups,
                dropout=self.dropout,
                attention=level in attends if attention is None else attention,
                name=name,
                dtype=policy,
            )

        last = len(self.multipliers) - 1
        self.down, self.up = [], []
        for level in range(last + 1):
            self.down += [block(level, f"down_{level}_{i}") for i in range(self.blocks_per_level)]
            if level < last:
                self.down.append(Downsample(name=f"downsample_{level}", dtype=policy))
        self.middle = [block(last, "middle_0", attention=True), block(last, "middle_1", attention=False)]
        for level in reversed(range(last + 1)):
            self.up += [block(level, f"up_{level}_{i}") for i in range(self.blocks_per_level + 1)]
            if level > 0:
                self.up.append(Upsample(name=f"upsample_{level}", dtype=policy))
        self.norm_out = GroupNormalization(self.groups, name="norm_out", dtype=policy)
        self.conv_out = keras.layers.Conv2D(
            self.out_channels,
            3,
            padding="same",
            **CHANNELS_LAST,
            kernel_initializer=fan_avg(0.0),
            name="conv_out",
            dtype="float32",
        )

    def build(self, input_shape: Shape | None = None) -> None:
        """Create the weights for images of `image_shape`; `input_shape` is not used."""
        embedding_shape = (None, 4 * self.width)
        self.embed_timestep.build((None,))
        if self.embed_label is not None:
            self.embed_label.build((None,))

        def grow(layer, shape):
            shapes = (shape, embedding_shape) if isinstance(layer, ResidualBlock) else (shape,)
            layer.build(*shapes)
            return layer.compute_output_shape(*shapes)

        shape = grow(self.conv_in, (None, *self.image_shape))
        skip_channels = [shape[-1]]
        for layer in self.down:
            shape = grow(layer, shape)
            skip_channels.append(shape[-1])
        for layer in self.middle:
            shape = grow(layer, shape)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                shape = (*shape[:-1], shape[-1] + skip_channels.pop())
            shape = grow(layer, shape)
        grow(self.norm_out, shape)
        grow(self.conv_out, shape)
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool = False, seed: Tensor = None) -> Tensor:
        """Return the prediction for [x_t, t] or [x_t, t, label].

        Args:
            inputs: x_t float (B, H, W, C), t int (B,) and, with classes, label int (B,).
            training: whether dropout is active.
            seed: int32 (B,), one an image, which determines its dropout masks. None = fresh masks.

        Returns:
            float32 (B, H, W, out_channels).
        """
        x_t, t, *label = inputs
        embedding = self.embed_timestep(t)
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(label[0])
        embedding = ops.silu(embedding)
        blocks = itertools.count()

        def run(layer, h):
            if isinstance(layer, ResidualBlock):
                block = next(blocks)
                return layer(h, embedding, seed=None if seed is None else seed + block, training=training)
            return layer(h)

        h = self.conv_in(x_t)
        skips = [h]
        for layer in self.down:
            h = run(layer, h)
            skips.append(h)
        for layer in self.middle:
            h = run(layer, h)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                h = ops.concatenate([h, skips.pop()], axis=-1)
            h = run(layer, h)
        return self.conv_out(self.norm_out.activated(h))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (B, H, W, out_channels)."""
        return (*input_shape[0][:-1], self.out_channels)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "width": self.width,
            "multipliers": self.multipliers,
            "blocks_per_level": self.blocks_per_level,
            "attention_resolutions": self.attention_resolutions,
            "dropout": self.dropout,
            "num_classes": self.num_classes,
            "groups": self.groups,
            "out_channels": self.out_channels,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict | None = None) -> "UNet":
        """Return the network of a configuration, of older files too, which may list attention at sizes of no level."""
        there = levels.sides(config["image_shape"][:2], len(config["multipliers"]))
        attention = [side for side in config["attention_resolutions"] if side in there]
        return super().from_config({**config, "attention_resolutions": attention}, custom_objects)


def _default_groups(channels: list[int]) -> int:
    """Return a number of groups with at least four channels each, as in the paper.

    A group of one channel would subtract what the timestep added to it. The groups divide the channels of every level,
    and the input channels of the first.
    """
    groups = math.gcd(32, *channels)
    while groups > 1 and min(channels) // groups < 4:
        groups //= 2
    return groups


def _checked_image_shape(image_shape) -> tuple[int, ...]:
    """Check that `image_shape` is (H, W, C) and return it as a tuple of ints."""
    try:
        shape = arguments.counts("image_shape", image_shape)
    except InputError:
        shape = ()
    if len(shape) != 3:
        raise InputError("image_shape", "must be (height, width, channels)", image_shape)
    return shape


def _attention_resolutions(image_shape, num_levels, given) -> tuple[int, ...]:
    """Return the sizes of the levels with attention, each once; None = the paper's."""
    if given is None:
        return tuple({_PAPERS_ATTENTION} & set(levels.sides(image_shape[:2], num_levels)))
    return tuple(dict.fromkeys(arguments.counts("attention_resolutions", given)))
