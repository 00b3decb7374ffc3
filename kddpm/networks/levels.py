"""The levels of a U-Net computed without Keras: sizes, attention, number of parameters.

Each level but the last halves the height and the width of the feature maps. A level is named by its larger side.
"""

from collections.abc import Collection, Sequence

from kddpm.base.errors import InputError


def divisor(num_levels: int) -> int:
    """Return the number that must divide the height and the width of an image."""
    return 2 ** (num_levels - 1)


def sides(image_size: Sequence[int], num_levels: int) -> list[int]:
    """Return the larger side of the feature maps of each level, in pixels."""
    return [max(image_size) // 2**level for level in range(num_levels)]


def with_attention(image_size: Sequence[int], num_levels: int, attention_resolutions: Collection[int]) -> set[int]:
    """Return the numbers, from 0, of the levels whose blocks end with attention."""
    return {level for level, side in enumerate(sides(image_size, num_levels)) if side in attention_resolutions}


def check(image_size: Sequence[int], num_levels: int, attention_resolutions: Collection[int], name: str) -> None:
    """Check that an image can be halved from level to level, and that the levels with attention exist.

    Args:
        image_size: (height, width) of an image.
        num_levels: how many multipliers there are.
        attention_resolutions: the larger sides of the levels with attention.
        name: of the argument with the image's size.

    Raises:
        InputError: a level has no whole number of pixels, or no level has a size that is listed.
    """
    factor = divisor(num_levels)
    if any(side % factor for side in image_size):
        raise InputError(
            name,
            f"must be divisible by {factor}, because {num_levels} levels ({{multipliers}}) halve it "
            f"{num_levels - 1} times",
            "x".join(map(str, image_size)),
            multipliers=...,
        )
    there = sides(image_size, num_levels)
    if not set(attention_resolutions) <= set(there):
        raise InputError(
            "attention_resolutions",
            f"must be among {', '.join(map(str, there))}, the sizes of the levels ({{{name}}}, {{multipliers}})",
            ",".join(map(str, attention_resolutions)),
            **{name: ..., "multipliers": ...},
        )


def count_parameters(
    image_shape: Sequence[int],
    width: int,
    multipliers: Sequence[int],
    blocks_per_level: int,
    attention_resolutions: Collection[int],
    num_classes: int | None,
    out_channels: int,
) -> int:
    """Return how many parameters a `UNet` would have, without building it: it need not fit in memory.

    Args:
        image_shape: as in `UNet`.
        width: as in `UNet`.
        multipliers: as in `UNet`.
        blocks_per_level: as in `UNet`.
        attention_resolutions: as in `UNet`.
        num_classes: as in `UNet`.
        out_channels: as in `UNet`, but not None.

    Example:
        >>> count_parameters((32, 32, 3), 128, (1, 2, 2, 2), 2, (16,), None, 3)
        35746307
    """
    embedding = 4 * width
    attends = with_attention(image_shape[:2], len(multipliers), attention_resolutions)

    def conv(inputs, outputs, side=3):
        return side * side * inputs * outputs + outputs

    def block(inputs, outputs, attention):
        shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
        norms = 2 * inputs + 2 * outputs
        convolutions = conv(inputs, outputs) + conv(embedding, outputs, 1) + conv(outputs, outputs)
        # The normalisation, the projection to query, key and value, and the output projection.
        extra = 2 * outputs + conv(outputs, 3 * outputs, 1) + conv(outputs, outputs, 1) if attention else 0
        return norms + convolutions + shortcut + extra

    total = conv(width, embedding, 1) + conv(embedding, embedding, 1)
    total += (num_classes + 1) * embedding if num_classes else 0
    total += conv(image_shape[-1], width)
    channels, skips = width, [width]
    last = len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks_per_level):
            inputs, channels = channels, width * multiplier
            total += block(inputs, channels, level in attends)
            skips.append(channels)
        if level < last:
            total += conv(channels, channels)
            skips.append(channels)
    total += block(channels, channels, True) + block(channels, channels, False)
    for level in reversed(range(last + 1)):
        for _ in range(blocks_per_level + 1):
            inputs, channels = channels + skips.pop(), width * multipliers[level]
            total += block(inputs, channels, level in attends)
        if level > 0:
            total += conv(channels, channels)
    return total + 2 * channels + conv(channels, out_channels)
