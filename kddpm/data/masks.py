"""Masks of known pixels: which part of a picture to keep, and which to paint anew. Needs no TensorFlow."""

import numpy as np
from PIL import Image

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.data import decoding

_ROUNDING = 1e-3  # by which resized floats leave [0, 1]


def known(mask: Tensor | Image.Image, image_size: tuple[int, int], count: int) -> np.ndarray:
    """Return which pixels a mask keeps.

    The kind of its values decides, over the whole array: `kept`. Colour becomes luma first, transparency white.

    Args:
        mask: (H, W) for all images or (N, H, W); both also with a last axis of 1, or of 2, 3 or 4 for grey with alpha,
            RGB and RGBA. Or a Pillow image.
        image_size: (H, W).
        count: N.

    Returns:
        bool (H, W) or (N, H, W).

    Raises:
        InputError: another shape, or values as in `kept`.
    """
    if isinstance(mask, Image.Image):
        mask = decoding.to_array(mask.copy(), (mask.height, mask.width), 1)[0]
    mask = np.asarray(mask)
    shapes = (tuple(image_size), (1, *image_size), (count, *image_size))
    if mask.shape not in shapes and mask.shape[:-1] in shapes and mask.shape[-1] <= 4:
        mask = _without_colour(mask)
    if mask.shape not in shapes:
        size = " x ".join(map(str, image_size))
        raise InputError("mask", f"must be {size}, or {count} of these", f"shape {mask.shape}")
    keeps = kept(mask)
    return keeps[0] if keeps.shape == (1, *image_size) else keeps


def kept(values: np.ndarray) -> np.ndarray:
    """Return which values of a mask mean "keep", bool of the same shape.

    bool: True. Integers: 1, if there are only 0 and 1; else above 127, of grey values 0 .. 255. Floats in [0, 1]: from
    0.5.

    Raises:
        InputError: other values or types; or grey values without white, which a list of classes has.
    """
    if values.dtype == bool:
        return values
    if not values.size or values.dtype.kind not in "iuf":
        raise InputError("mask", "must be bool or numbers", f"{values.dtype} of shape {values.shape}")
    least, most = values.min(), values.max()  # NaN, if there is one
    received = f"{values.dtype} from {arguments.shortest(least)} to {arguments.shortest(most)}"
    if values.dtype.kind == "f":
        if not (least >= -_ROUNDING and most <= 1 + _ROUNDING):
            raise InputError("mask", "must lie in [0, 1] as floats, or be uint8 or bool", received)
        return values >= 0.5
    if least < 0 or most > 255:
        raise InputError("mask", "must be bool, 0 and 1, or grey values in 0 .. 255", received)
    if 1 < most <= 127:
        raise InputError("mask", "must have white, above 127, where to keep the picture, or be 0 and 1", received)
    return values > (127 if most > 1 else 0)


def _without_colour(mask: np.ndarray) -> np.ndarray:
    """Return a mask (..., C) without its last axis."""
    if (mask == mask[..., :1]).all():  # grey values, once a channel
        return mask[..., 0]
    if mask.dtype != np.uint8:
        raise InputError("mask", "must be the same in every channel, or uint8", f"{mask.dtype} of shape {mask.shape}")
    rows = mask.reshape(-1, mask.shape[-2], mask.shape[-1])  # images under each other are an image
    grey, _ = decoding.to_array(Image.fromarray(rows), rows.shape[:2], 1)
    return grey.reshape(mask.shape[:-1])
