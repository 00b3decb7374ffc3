"""Pictures in grids and in files."""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np
from PIL import Image

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(temporary, "PNG")
        temporary.replace(path)
    finally:
        if temporary.exists():
            temporary.unlink()
