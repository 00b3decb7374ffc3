"""The network of kddpm/unet.py in PyTorch, as one would write it there, with kddpm's weights.

Feature maps are (B, C, H, W); children bear the names that kddpm gives its layers, so that "down_0_0/conv_1/kernel" is
`down_0_0.conv_1.weight`. Upsampling is nearest neighbour followed by a convolution, normalisation `nn.GroupNorm`,
attention `scaled_dot_product_attention`: what PyTorch and ONNX Runtime have fast paths for.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class TimestepEmbedding(nn.Module):
    """t (B,) to an activated vector (B, 4 width)."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / max(half - 1, 1)).astype("float32")
        self.register_buffer("frequencies", torch.from_numpy(frequencies), persistent=False)
        self.odd = width % 2
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, 4 * width)

    def forward(self, t):
        """t (B,) to (B, 4 width)."""
        angles = t.float()[:, None] * self.frequencies
        sinusoids = F.pad(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1), (0, self.odd))
        return F.silu(self.out(F.silu(self.hidden(sinusoids))))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, one head, added to the raw input."""

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        """x (B, C, H, W)."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        # With an axis for the head: torch.onnx takes scaled_dot_product_attention in four dimensions alone.
        query, key, value = self.qkv(pixels).unsqueeze(1).chunk(3, dim=-1)
        attended = self.out(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv; plus the timestep; norm, SiLU, dropout, conv; plus the input; then attention if asked for."""

    def __init__(self, channels_in, channels, embedding, groups, attention, dropout):
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv_1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.timestep = nn.Linear(embedding, channels)
        self.norm_2 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.attention = AttentionBlock(channels, groups) if attention else nn.Identity()

    def forward(self, x, embedding):
        """x (B, C, H, W), embedding (B, E)."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.timestep(embedding)[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.attention(h + self.shortcut(x))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded at the far edges only."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        """(B, C, H, W) to (B, C, H/2, W/2); H and W even."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """Predicts the noise in x_t.

    Args:
        image_shape: (H, W, C).
        width: channels of the first level.
        multipliers: one a level.
        blocks_per_level: residual blocks on the way down; one more on the way up.
        attention_resolutions: levels whose larger side is listed here have attention.
        groups: groups of the normalisations.
        dropout: dropout rate of the residual blocks, in training.
    """

    def __init__(self, image_shape, width, multipliers, blocks_per_level, attention_resolutions, groups, dropout=0.0):
        super().__init__()
        height, width_of_image, colours = image_shape
        last = len(multipliers) - 1
        self.embed_timestep = TimestepEmbedding(width)
        self.conv_in = nn.Conv2d(colours, width, 3, padding=1)
        skips, self.down, self.middle, self.up = [width], [], [], []

        def block(level, channels_in, name, attention=None):
            if attention is None:
                attention = max(height, width_of_image) // 2**level in attention_resolutions
            channels = width * multipliers[level]
            self.add_module(name, ResidualBlock(channels_in, channels, 4 * width, groups, attention, dropout))
            return name

        for level, multiplier in enumerate(multipliers):
            for i in range(blocks_per_level):
                self.down.append(block(level, skips[-1], f"down_{level}_{i}"))
                skips.append(width * multiplier)
            if level < last:
                self.add_module(f"downsample_{level}", Downsample(skips[-1]))
                self.down.append(f"downsample_{level}")
                skips.append(skips[-1])
        channels = skips[-1]
        self.middle = [block(last, channels, "middle_0", True), block(last, channels, "middle_1", False)]
        for level in reversed(range(last + 1)):
            for i in range(blocks_per_level + 1):
                self.up.append(block(level, channels + skips.pop(), f"up_{level}_{i}"))
                channels = width * multipliers[level]
            if level > 0:
                self.add_module(f"upsample_{level}", Upsample(channels))
                self.up.append(f"upsample_{level}")
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, colours, 3, padding=1)

    def forward(self, x, t):
        """x (B, C, H, W) and t (B,) to the noise (B, C, H, W)."""
        embedding = self.embed_timestep(t)

        def run(name, h):
            layer = self.get_submodule(name)
            return layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)

        h = self.conv_in(x)
        skips = [h]
        for name in self.down:
            h = run(name, h)
            skips.append(h)
        for name in self.middle:
            h = run(name, h)
        for name in self.up:
            if isinstance(self.get_submodule(name), ResidualBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = run(name, h)
        return self.conv_out(F.silu(self.norm_out(h)))


class DeviceCall(nn.Module):
    """The network between the tensors of the exported signature: x (1, H, W, C), t (1,) to eps (1, H, W, C).

    Args:
        network: a `UNet`.
        channels_last: the memory format in which feature maps enter the network.
    """

    def __init__(self, network, channels_last=False):
        super().__init__()
        self.network = network
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x, t):
        """x and t to eps."""
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)
        return self.network(x, t).permute(0, 2, 3, 1)


def load_weights(network, weights):
    """Fill the network.

    Args:
        network: a `UNet`.
        weights: arrays by kddpm's path without the outermost name, "down_0_0/conv_1/kernel".

    Raises:
        RuntimeError: a weight that is missing, left over or of another shape.
    """
    state = {}
    for path, value in weights.items():
        parent, kind = path.rsplit("/", 1)
        name = parent.replace("/", ".")
        if name.startswith("upsample_"):
            name += ".conv"
        if kind == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            if name.endswith(".shortcut"):
                value = value[:, :, None, None]
        name += {"kernel": ".weight", "scale": ".weight", "bias": ".bias", "offset": ".bias"}[kind]
        state[name] = torch.from_numpy(np.array(value))
    network.load_state_dict(state)
