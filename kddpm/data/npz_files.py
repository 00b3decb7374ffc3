"""Images and labels in NumPy archives (.npz), read a few megabytes at a time and never unpickled."""

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kddpm.base import archives
from kddpm.base.errors import InputError, first_line
from kddpm.data import image_cache
from kddpm.data.labels import MOST_CLASSES

_BLOCK_BYTES = 2**24
_MOST_LABEL_BYTES = 2**31
# What reading a damaged archive may raise; NotImplementedError, for an unknown zip version, is a RuntimeError.
ERRORS = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class NpzImages:
    """The images of an archive, of which only the headers have been read."""

    shape: tuple[int, int, int, int]  # (N, H, W, C)
    labels: np.ndarray | None  # int32 (N,)
    blocks: Callable[[], Iterator[np.ndarray]]  # yields uint8 (n, H, W, C), in order


def open_npz(spec: str, path: str) -> NpzImages:
    """Find the images and labels of an archive.

    The images are the first of the arrays `images`, `x_train` and `x`, else the only uint8 array of 3 or 4 dimensions;
    the labels are the first of `labels`, `y_train` and `y`.

    Args:
        spec: names the data in errors.
        path: the archive.

    Returns:
        The images, (N, H, W) as (N, H, W, 1).

    Raises:
        InputError: the archive is missing, damaged or has unsuitable arrays; damaged pixels are found when `blocks` is
            read.
    """
    headers = _headers(spec, path)
    name: str | None = next((name for name in ("images", "x_train", "x") if name in headers), None)
    if name is None:
        uint8 = [name for name, (shape, _, dtype) in headers.items() if dtype == np.uint8 and len(shape) in (3, 4)]
        if len(uint8) != 1:
            raise InputError(
                f"{spec}: expected an array named images, x_train or x, or a single uint8 array of 3 or 4 dimensions. "
                "Received: " + (", ".join(f"{k} {dtype}{shape}" for k, (shape, _, dtype) in headers.items()) or "none")
            )
        name = uint8[0]
    shape, fortran_order, dtype = headers[name]
    if dtype != np.uint8:
        raise InputError(f"{spec}: `{name}` must be uint8, 0..255. Received: {dtype} of shape {shape}")
    full = (*shape, 1) if len(shape) == 3 else shape
    if len(full) != 4 or min(full) < 1 or full[3] not in (1, 3, 4):
        raise InputError(
            f"{spec}: `{name}` must be (N, H, W) or (N, H, W, C), with 1, 3 or 4 channels last. Received: {shape}"
        )
    if fortran_order and int(np.prod(full, dtype=object)) > image_cache.MAX_RAM_BYTES:
        raise InputError(f"{spec}: `{name}` is too large to be read in Fortran order; save it in C order")

    def blocks() -> Iterator[np.ndarray]:
        if fortran_order:  # the images are interleaved, so the array is read whole
            yield _array(spec, path, name, headers[name]).reshape(full)
            return
        try:
            with archives.opened(path) as archive, _opened(archive, name) as file:
                if _read_header(file) != headers[name]:
                    raise ValueError("it changed while it was read")
                yield from _read_rows(file, full)
        except ERRORS as error:
            raise InputError(f"{spec}: cannot read `{name}`: {first_line(error)}") from None

    return NpzImages(full, _labels(spec, path, headers, full[0]), blocks)


def read_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, fortran_order: bool = False
) -> np.ndarray:
    """Read an array of an archive after checking the shape and type in its header: nothing larger is read.

    Raises:
        ValueError, KeyError or zipfile.BadZipFile: another shape or type, or the array is missing or damaged.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    with _opened(archive, name) as file:
        found = _read_header(file)
        if found != (shape, fortran_order, dtype):
            raise ValueError(f"expected {dtype} {shape} for {name}. Received: {found[2]} {found[0]}")
        size = int(np.prod(shape)) * dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{name} ends after {len(data)} of {size} bytes")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _opened(archive: zipfile.ZipFile, name: str):
    return archives.open_member(archive, archive.getinfo(f"{name}.npy"))


def _headers(spec: str, path: str) -> dict[str, tuple]:
    """Return {name: (shape, fortran_order, dtype)} without reading an array."""
    try:
        headers = {}
        with archives.opened(path) as archive:
            for member in archive.infolist():
                name, suffix = os.path.splitext(member.filename)
                if suffix == ".npy":
                    with archives.open_member(archive, member) as file:
                        headers[name] = shape, _, dtype = _read_header(file)
                    size = math.prod(shape) * dtype.itemsize
                    if size > member.file_size and not dtype.hasobject:
                        raise ValueError(f"`{name}` is {size:,} bytes by its header, and {member.file_size:,} with it")
        return headers
    except ERRORS as error:
        text = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        raise InputError(f"{spec}: expected a NumPy .npz archive; {text}") from None


def _read_header(file) -> tuple:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # later versions are for headers above 64 KiB, and may claim up to 4 GiB
        raise ValueError(f"expected version 1.0 of the .npy format. Received: {version}")
    try:
        return np.lib.format.read_array_header_1_0(file)
    except ERRORS:
        raise
    except Exception as error:  # the header is parsed as Python: tokenize.TokenError, MemoryError, ...
        raise ValueError(f"its header is damaged: {first_line(error)}") from None


def _read_rows(file, shape: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    """Yield the rows of a C-ordered uint8 array, a few megabytes at a time."""
    row = int(np.prod(shape[1:]))
    step = max(1, _BLOCK_BYTES // row)
    for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        data = file.read(rows * row)
        if len(data) != rows * row:
            raise ValueError(f"expected {shape[0]} images; the data end after {start + len(data) // row}")
        yield np.frombuffer(data, np.uint8).reshape(rows, *shape[1:])


def _array(spec: str, path: str, name: str, header: tuple) -> np.ndarray:
    shape, fortran_order, dtype = header
    try:
        with archives.opened(path) as archive:
            return read_array(archive, name, shape, dtype, fortran_order)
    except ERRORS as error:
        raise InputError(f"{spec}: cannot read `{name}`: {first_line(error)}") from None


def _labels(spec: str, path: str, headers: dict[str, tuple], count: int) -> np.ndarray | None:
    name = next((name for name in ("labels", "y_train", "y") if name in headers), None)
    if name is None:
        return None
    shape, _, dtype = header = headers[name]
    if shape not in ((count,), (count, 1)):
        raise InputError(f"{spec}: `{name}` must hold one label for each of {count} images. Received: shape {shape}")
    if dtype.kind not in "iu":
        raise InputError(f"{spec}: `{name}` must be integers. Received: {dtype}")
    if count * dtype.itemsize > _MOST_LABEL_BYTES:
        raise InputError(f"{spec}: `{name}` is too large to be kept in memory")
    labels = _array(spec, path, name, header).reshape(count)
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise InputError(
            f"{spec}: `{name}` must lie in 0..{MOST_CLASSES - 1}. Received: {labels.min()}..{labels.max()}"
        )
    return labels.astype(np.int32)
