"""Pictures in grids and in files, and those that a user brings."""

from __future__ import annotations

import math
import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from .description import InputError

_READABLE_SIDE = 48  # smaller pictures are enlarged to about this many pixels a side
_GUTTER, _GUTTER_GREY = 2, 128


def grid(pictures: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arrange pictures, uint8 (N, H, W, C), in a grid, enlarged if small, with grey gutters.

    Args:
        pictures: uint8 (N, H, W, C).
        columns: pictures a row; None = as square as possible.
    """
    n, height, width, channels = pictures.shape
    enlarge = max(1, round(_READABLE_SIDE / max(height, width)))
    pictures = pictures.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    columns = columns or math.ceil(math.sqrt(n))
    down, across = height * enlarge + _GUTTER, width * enlarge + _GUTTER
    size = (-(-n // columns) * down + _GUTTER, columns * across + _GUTTER, channels)
    canvas = np.full(size, _GUTTER_GREY, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = k // columns * down + _GUTTER, k % columns * across + _GUTTER
        canvas[y : y + height * enlarge, x : x + width * enlarge] = picture
    return canvas


def save(path: pathlib.Path, picture: np.ndarray) -> None:
    """Write a PNG to a temporary file and rename it, so that the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.part")
    try:
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(temporary, "PNG")
        temporary.replace(path)
    finally:
        if temporary.exists():
            temporary.unlink()


def opened(flag: str, path: pathlib.Path, image_shape: list[int]) -> np.ndarray:
    """Return an image file as uint8 (H, W, C), cropped around its centre and resized; transparency becomes white.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise InputError(f"{flag} needs a model of grey or RGB pictures. Received: one of {channels} channels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and of many pixels below the number that Pillow refuses
            with Image.open(path) as image:
                image = _in_8_bit(ImageOps.exif_transpose(image)).convert("RGBA")
    except Exception as error:  # decoders raise what they like
        raise InputError(f"{flag} must be an image file. Received: {path} ({error})") from None
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(
        "L" if channels == 1 else "RGB"
    )
    is_larger = min(image.width / width, image.height / height) >= 1
    resample = Image.Resampling.BOX if is_larger else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(image, (width, height), resample)).reshape(height, width, channels)


def _in_8_bit(image):
    """Return a picture whose grey values have 16 bits with 8, where Pillow's own conversion clips them at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels of 32 bits; expected 8 or 16")
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))


def kept(mask: np.ndarray) -> np.ndarray:
    """Return which pixels a mask of grey values, or of 0 and 1, keeps, bool (H, W).

    Raises:
        InputError: it keeps none, unless it is black.
    """
    most = mask.max()
    if 1 < most <= 127:
        raise InputError(f"--mask must have white, above 127, where to keep the picture. Received: at most {most}")
    return mask > (127 if most > 1 else 0)
