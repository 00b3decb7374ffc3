"""Decode image files to uint8 arrays of one shape.

A picture goes through these steps, in this order:

1. its EXIF orientation is applied; of an animation, or a file of several pictures, only the first is used;
   colour profiles are ignored;
2. 16-bit grey becomes 8-bit by round(value / 257); of deeper colour Pillow keeps the high bits;
3. transparency, from an alpha channel or a palette, is composited over white;
4. colour becomes RGB, or luma (ITU-R 601-2) if one channel is requested;
5. a picture of another size is cropped around its centre to the requested aspect ratio, then resized: by area (each
   target pixel is the mean of the source pixels whose centres lie in it) when it shrinks, bicubic when it grows.
   A picture that already has the size stays the same bit for bit.

The result comes with a description of the steps that changed the decoder's pixels: rotating a picture, reading a
palette and dropping an opaque alpha channel do not count as changes.
"""

import collections
import concurrent.futures
import contextlib
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kddpm.base import progress
from kddpm.base.errors import InputError
from kddpm.data.image_files import FORMATS, ImageFiles, check_file_size, formats_of, printable

MAX_PIXELS = 178_956_970  # Pillow's own limit, above which it refuses an image as a decompression bomb
PROGRESS_FROM_FILES = 2_000

_PNG = b"\x89PNG"
_BLOCK = 16  # files that a thread decodes at a time
_LARGE_PIXELS = 2**25  # larger pictures are decoded one at a time: each may take a gigabyte


def common_shape(
    files: ImageFiles, image_size: tuple[int, int] | None, channels: int | None, verbose: bool = True
) -> tuple[int, int, int]:
    """Return the (height, width, channels) of all decoded images, read from the headers where an argument is None.

    Args:
        files: the image files.
        image_size: (height, width); None = the common size of all images.
        channels: 1 or 3; None = 1 if every file is stored as grey, or with a grey palette, else 3.
        verbose: whether to show a progress bar when there are many files.

    Returns:
        (height, width, channels). Unreadable files are ignored here; `decode_all` reports them.

    Raises:
        InputError: `image_size` is None and the images differ in size.
    """
    if image_size is not None and channels is not None:
        return (*image_size, channels)

    def inspect(i: int) -> tuple[tuple[int, int], bool]:
        with _open(files.read(i), files.names[i]) as image:
            return (_oriented_size(image) if image_size is None else (0, 0)), _is_grey(image)

    headers = [found for found, reason in _for_each(files, inspect, "Inspecting", verbose) if reason is None]
    sizes = [size for size, _ in headers]
    if image_size is None and len(set(sizes)) > 1:
        counts = sorted({size: sizes.count(size) for size in set(sizes)}.items(), key=lambda item: (-item[1], item[0]))
        text = ", ".join(f"{w}x{h} ({count})" for (h, w), count in counts[:8]) + (", ..." if len(counts) > 8 else "")
        raise InputError(
            f"{files.spec}: the images differ in size; name one with {{image_size}}. "
            f"Received, as width x height (images): {text}",
            image_size=...,
        )
    if not headers:
        return 1, 1, 1  # every file is bad; `decode_all` reports why
    return (*(image_size or sizes[0]), channels or (1 if all(grey for _, grey in headers) else 3))


def decode_all(
    files: ImageFiles, out: np.ndarray, verbose: bool = True
) -> tuple[dict[str, str], collections.Counter[str]]:
    """Decode file i into `out[i]`.

    Args:
        files: the image files.
        out: uint8 (N, H, W, C), written in place; rows of bad files stay unchanged.
        verbose: whether to show a progress bar when there are many files.

    Returns:
        {name: reason} of the files that cannot be used, without those in `files.bad`; and {changes: number of images}
        of the pictures whose pixels were changed, described as in `to_array`.
    """
    height, width, channels = out.shape[1:]
    one_at_a_time = threading.Lock()

    def decode(i: int) -> str:
        with _open(files.read(i), files.names[i]) as image:
            is_large = image.width * image.height > _LARGE_PIXELS
            with one_at_a_time if is_large else contextlib.nullcontext():
                out[i], changes = to_array(image, (height, width), channels)
        return changes

    results = _for_each(files, decode, "Decoding", verbose)
    bad = {name: reason for name, (_, reason) in zip(files.names, results, strict=True) if reason is not None}
    return bad, collections.Counter(changes for changes, _ in results if changes)


def read_image(
    name: str, path: str | os.PathLike, image_size: tuple[int, int] | None, channels: int
) -> tuple[np.ndarray, str, tuple[int, int]]:
    """Read one picture from a file.

    Args:
        name: flag or argument to name in the error.
        path: the file; its content decides how it is decoded, except for the formats without a signature.
        image_size: (height, width); None = the size in the file.
        channels: 1 or 3.

    Returns:
        uint8 (height, width, channels) and the description of changes, as from `to_array`; (height, width) in the file.

    Raises:
        InputError: the file is missing or not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            check_file_size(os.stat(path).st_size)
            with open(path, "rb") as file, _open(file.read(), str(path)) as image:
                file_size = _oriented_size(image)
                return (*to_array(image, image_size or file_size, channels), file_size)
    except MemoryError:
        raise
    except Exception as error:  # as in `_for_each`
        raise InputError(f"{name}: cannot read {printable(str(path))}: {_reason(error)}") from None


def to_array(
    image: Image.Image,
    image_size: tuple[int, int],
    channels: int,
    enlarge: Image.Resampling = Image.Resampling.BICUBIC,
) -> tuple[np.ndarray, str]:
    """Convert one picture by the five steps of the module's docstring.

    Args:
        image: any Pillow image; it is changed in place.
        image_size: (height, width).
        channels: 1 or 3.
        enlarge: resampling filter for enlarging.

    Returns:
        uint8 (height, width, channels); and the changes to the decoder's pixels, such as "cropped and resized", or "".
    """
    changes = []
    deep = _is_deep(image)  # before loading, after which Pillow no longer knows
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if channels == 1:
        recoloured = "" if _is_grey(image) else "made grey"
    else:
        recoloured = "" if image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX") else "made RGB"
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
        deep = True
    if deep:
        changes.append("cut to 8 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        if np.min(alpha.getextrema()) < 255:
            changes.append("laid over white")
        image = Image.composite(rgba.convert("RGB"), Image.new("RGB", rgba.size, "white"), alpha)
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    changes.append(recoloured)
    if image.width * image_size[0] != image.height * image_size[1]:
        changes.append("cropped")
    if min(image.width / image_size[1], image.height / image_size[0]) != 1:
        changes.append("resized")
    array = np.asarray(_resize(image, image_size, enlarge)).reshape(*image_size, channels)
    return array, _listed(list(filter(None, changes)))


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def fit_arrays(blocks: Iterable[np.ndarray], out: np.ndarray) -> tuple[int, collections.Counter[str]]:
    """Write blocks of images into the rows of `out`, resized and recoloured if necessary.

    Args:
        blocks: uint8 (n, h, w, c) each, c = 1, 3 or 4.
        out: uint8 (N, H, W, C), written in place.

    Returns:
        The number of images; and {changes: number of images} of those that were changed, described as in `to_array`.
    """
    row = 0
    altered: collections.Counter[str] = collections.Counter()
    for block in blocks:
        if block.shape[1:] == out.shape[1:]:
            out[row : row + len(block)] = block
        else:
            for i, image in enumerate(block):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                out[row + i], changes = to_array(picture, out.shape[1:3], out.shape[3])
                altered[changes] += bool(changes)
        row += len(block)
    return row, +altered


def _is_deep(image: Image.Image) -> bool:
    """Return whether an unloaded colour picture has 16 bits a channel in its file; Pillow has no mode for that."""
    for codec, _, _, args in getattr(image, "tile", ()):
        raw, *more = args if isinstance(args, tuple) else (args,)
        largest = more[0] if codec.startswith("ppm") else 0
        if re.search(r";16[BLN]", str(raw)) or largest > 255:
            return True
    return False


def _resize(image: Image.Image, image_size: tuple[int, int], enlarge: Image.Resampling) -> Image.Image:
    height, width = image_size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    left, top = max(0.0, (image.width - width * scale) / 2), max(0.0, (image.height - height * scale) / 2)
    # min: the product may exceed the edge by a rounding error, which Pillow refuses.
    right, bottom = min(left + width * scale, image.width), min(top + height * scale, image.height)
    resample = Image.Resampling.BOX if scale >= 1 else enlarge
    return image.resize((width, height), resample, box=(left, top, right, bottom), reducing_gap=None)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8 bits; Pillow's own conversion clips at 255."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected 8 or 16 bits a channel")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels; expected 8 or 16 bits a channel")
    grey = (values + 128) // 257
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P":
        found: Any = image.palette  # None in a damaged file: the attribute error is caught like any other
        layout, palette = found.getdata()
        if layout in ("RGB", "RGBA", "BGR", "BGRX") and len(palette) % len(layout) == 0:
            entries = np.frombuffer(palette, np.uint8).reshape(-1, len(layout))
            return bool((entries[:, :2] == entries[:, 1:3]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) after the EXIF orientation, of which 5 to 8 swap the two."""
    width, height = image.size
    # A square keeps its size; skipping its EXIF saves Pillow from decoding whole PNG files to find it.
    return (width, height) if width != height and image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (height, width)


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header; refuse too many pixels before any of them is decoded."""
    if not data:
        raise ValueError("empty file")
    if data.startswith(_PNG):  # Pillow would ignore wrong PNG checksums and decode what is left
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            try:
                image.verify()
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"truncated or damaged: {error}") from None
    image = Image.open(io.BytesIO(data), formats=formats_of(name))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels; expected at most {MAX_PIXELS:,} (decompression bomb?)")
    return image


def _for_each(files: ImageFiles, work: Callable, text: str, verbose: bool) -> list[tuple]:
    """Return (work(i), None), or (None, reason) if it failed, for every file in order; runs on a few threads."""
    count = len(files.names)

    def block(start: int) -> list[tuple]:
        results: list[tuple] = []
        for i in range(start, min(start + _BLOCK, count)):
            try:
                results.append((work(i), None))
            except MemoryError:
                raise
            except Exception as error:  # on a damaged file decoders raise anything, even struct.error and IndexError
                results.append((None, _reason(error)))
        return results

    results: list[tuple] = []
    Image.init()  # loads Pillow's plugins now, so that the threads do not race for it
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    with (
        warnings.catch_warnings(),
        progress.bar(count, text, "file", verbose and count >= PROGRESS_FROM_FILES) as bar,
    ):
        # Pillow warns above half of MAX_PIXELS; here only the limit itself matters, and that is an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            for done in pool.map(block, range(0, count, _BLOCK)):
                results += done
                bar.update(len(done))
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is the address of a buffer
        return "not a readable image; expected " + ", ".join(FORMATS)
    if isinstance(error, Image.DecompressionBombError):
        return f"expected at most {MAX_PIXELS:,} pixels (decompression bomb?)"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable((text.splitlines() or [""])[0])[:200] or type(error).__name__
