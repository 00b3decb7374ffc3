"""Image conversion and output: uint8 <-> [-1, 1], grids, filmstrips, PNG and GIF.

Only the two conversions use TensorFlow (through `keras.ops`); everything else is NumPy and Pillow on uint8 arrays
(N, H, W, C) with C = 1 (grey) or 3 (RGB).
"""

import math
import os

import numpy as np
from PIL import Image

from kddpm.base.errors import InputError
from kddpm.base.files import replacing
from kddpm.base.types import Tensor

_GUTTER_GREY = 128
_READABLE_SIDE = 48  # smaller pictures are enlarged to about this many pixels a side, to be visible in a grid


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 in 0 .. 255 to float32 in [-1, 1]: exactly x / 127.5 - 1."""
    from keras import ops

    return ops.cast(images, "float32") / 127.5 - 1


def to_uint8(x: Tensor, dtype: str = "uint8") -> Tensor:
    """Convert float in [-1, 1] to uint8 by rounding and clipping. The inverse of `to_float`.

    `dtype` may be another type for the same numbers: devices read int32 but not uint8.
    """
    from keras import ops

    return ops.cast(ops.clip(ops.round((ops.cast(x, "float32") + 1) * 127.5), 0, 255), dtype)


def grid(images: np.ndarray, columns: int | None = None, gutter: int = 2, enlarge: int | None = None) -> np.ndarray:
    """Arrange pictures in a grid, with a grey gutter between and around them.

    Args:
        images: uint8 (N, H, W, C).
        columns: pictures a row; None = as square as possible.
        gutter: width of the gutter in pixels of the result.
        enlarge: side of the square that each pixel becomes; None = enlarge small pictures to about 48 pixels a side.

    Returns:
        uint8 (H', W', C); empty cells have the grey of the gutter.
    """
    images = _checked(images)
    if columns is not None and columns < 1:
        raise InputError("columns", "must be at least 1", columns)
    n, height, width, channels = images.shape
    enlarge = enlarge or max(1, round(_READABLE_SIDE / max(height, width)))
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    step_y, step_x = height * enlarge + gutter, width * enlarge + gutter
    canvas = np.full((rows * step_y + gutter, columns * step_x + gutter, channels), _GUTTER_GREY, np.uint8)
    for k, image in enumerate(images):
        y, x = gutter + k // columns * step_y, gutter + k % columns * step_x
        canvas[y : y + height * enlarge, x : x + width * enlarge] = image
    return canvas


def filmstrip(frames: np.ndarray, gutter: int = 2, enlarge: int | None = None) -> np.ndarray:
    """Arrange a trajectory as one picture: a row for each image, time from left to right.

    Args:
        frames: uint8 (frames, N, H, W, C).
        gutter: as in `grid`.
        enlarge: as in `grid`.
    """
    time, n, *shape = frames.shape
    return grid(frames.swapaxes(0, 1).reshape(n * time, *shape), columns=time, gutter=gutter, enlarge=enlarge)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write uint8 (H, W, C) as a PNG."""
    image = _checked(image[np.newaxis])[0]
    with replacing(path) as temporary:
        _pillow(image).save(temporary, "PNG")


def save_gif(path: str | os.PathLike, frames: list[np.ndarray], duration_ms: int = 60, hold_ms: int = 1500) -> None:
    """Write uint8 (H, W, C) frames as an endlessly repeated GIF that shows its last frame for `hold_ms`."""
    first, *rest = [_pillow(frame) for frame in _checked(np.stack(frames))]
    durations = [duration_ms] * len(rest) + [hold_ms]
    with replacing(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _checked(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise InputError("images", "must be uint8 (N, H, W, 1 or 3) with N > 0", f"{images.dtype} {images.shape}")
    return images
