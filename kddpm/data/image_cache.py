"""Storage of decoded images: in memory, or above a limit in a memory-mapped file that later runs reuse.

The array `images-<hash of the spec>.npy` and its small JSON file are written under temporary names and renamed. The
JSON is removed first and renamed last, so that a kill at any moment leaves a complete pair or none. The next start
removes the temporary files that a kill left.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import tempfile
import tokenize
from collections.abc import Callable

import numpy as np

from kddpm.base.errors import InputError
from kddpm.base.files import check_regular, locked, read_json, replacing

MAX_RAM_BYTES = 2 * 2**30
_DIGEST_BYTES = 2**24
_MOST_RECORD_BYTES = 2**30  # it contains the labels
_UNFINISHED = ".tmp"  # suffix of arrays that are being written


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Decoded images with their labels and digest."""

    images: np.ndarray  # uint8 (N, H, W, C)
    labels: np.ndarray | None  # int32 (N,)
    class_names: tuple[str, ...]
    dropped: dict[str, str]  # {name: reason} of the bad files that were skipped
    altered: dict[str, int]  # {changes: number of images} of those whose pixels were changed
    digest: str


@dataclasses.dataclass(frozen=True)
class Filled:
    """What a source returns after it has written its images into an array."""

    count: int  # rows in use
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    altered: dict[str, int] = dataclasses.field(default_factory=dict)


def digest(images: np.ndarray, labels: np.ndarray | None) -> str:
    """Return the SHA-256 digest over the shape, the pixels and the labels, in this order.

    Args:
        images: uint8 (N, H, W, C); read in pieces of a few megabytes.
        labels: int32 (N,), or None.

    Returns:
        64 hexadecimal digits.
    """
    result = hashlib.sha256(repr(tuple(int(n) for n in images.shape)).encode())
    rows = max(1, _DIGEST_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), rows):
        result.update(np.ascontiguousarray(images[start : start + rows]).data)
    if labels is not None:
        result.update(np.ascontiguousarray(labels, "<i4").data)
    return result.hexdigest()


def decoded(
    spec: str,
    manifest: list,
    shape: Callable[[], tuple[int, int, int, int]],
    fill: Callable[[np.ndarray], Filled],
    cache_dir: str | None,
) -> Decoded:
    """Return the images from the cache, or have the source write them into a new array.

    Args:
        spec: names the data in errors and, hashed, in the file's name.
        manifest: JSON values that are equal whenever the images would be.
        shape: returns (N, H, W, C), of which some rows may stay unused; not called when the cache has the images.
        fill: writes the images into the first rows of an array of that shape; not called in that case either.
        cache_dir: folder for arrays above `MAX_RAM_BYTES`; None = refuse them.

    Returns:
        The images, in memory or as a read-only `np.memmap`.

    Raises:
        InputError: the images need a `cache_dir`, or more disk space than it has.
    """
    key = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    stem = (
        os.path.join(cache_dir, f"images-{hashlib.sha256(ascii(spec).encode()).hexdigest()[:16]}") if cache_dir else ""
    )
    if cache_dir and (earlier := _earlier(stem, key)):
        return earlier
    full_shape = shape()
    need = int(np.prod(full_shape, dtype=object))
    if need <= MAX_RAM_BYTES:
        try:
            images = np.empty(full_shape, np.uint8)
        except MemoryError:
            raise InputError(f"{spec}: no memory for {_gib(need)} of decoded images") from None
        return _finish(images, fill(images))
    if not cache_dir:
        raise InputError(
            f"{spec}: {_gib(need)} of decoded images are more than the {_gib(MAX_RAM_BYTES)} kept in memory; "
            "name a folder for them with {cache_dir}",
            cache_dir=...,
        )
    try:
        os.makedirs(cache_dir, exist_ok=True)
        _remove_unfinished(stem)
        # On a full disk, a write through a memory map raises a signal, not an exception: check the space first.
        room = shutil.disk_usage(cache_dir).free
        handle, temporary = tempfile.mkstemp(dir=cache_dir, prefix=f"{os.path.basename(stem)}-", suffix=_UNFINISHED)
    except OSError as error:
        raise InputError(
            "cache_dir", "must be a folder that can be written to", f"{cache_dir}: {error.strerror}"
        ) from None
    os.close(handle)
    try:
        with locked(temporary):
            if room < need:
                raise InputError("cache_dir", f"must have {_gib(need)} of free disk for {spec}", _gib(room))
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, full_shape)
            result = _finish(images, fill(images))
            images.flush()
            with contextlib.suppress(FileNotFoundError):
                os.remove(f"{stem}.json")
            os.replace(temporary, f"{stem}.npy")
    except BaseException:
        os.remove(temporary)
        raise
    _write_record(stem, key, result)
    return _earlier(stem, key) or result


def _write_record(stem: str, key: str, result: Decoded) -> None:
    """Write the JSON file of an array, which makes the pair complete."""
    record = {
        "manifest": key,
        "count": len(result.images),
        "labels": None if result.labels is None else result.labels.tolist(),
        "class_names": result.class_names,
        "dropped": result.dropped,
        "altered": result.altered,
        "digest": result.digest,
    }
    with replacing(f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(record), encoding="ascii")


def _finish(images: np.ndarray, filled: Filled) -> Decoded:
    images = images[: filled.count]
    hash_ = digest(images, filled.labels)
    return Decoded(images, filled.labels, filled.class_names, filled.dropped, dict(filled.altered), hash_)


def _remove_unfinished(stem: str) -> None:
    """Remove the temporary arrays that kills left, but not those that another process is writing."""
    for left in glob.glob(f"{glob.escape(stem)}-*{_UNFINISHED}"):
        with contextlib.suppress(BlockingIOError), locked(left):
            os.remove(left)


# What reading a damaged array or JSON file may raise.
_DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, IndexError, OverflowError, tokenize.TokenError)


def _earlier(stem: str, key: str) -> Decoded | None:
    """Return the cached images of the same manifest; None = there are none, or they are damaged, and are made again."""
    try:
        record = read_json(f"{stem}.json", _MOST_RECORD_BYTES)
        if record["manifest"] != key:
            return None
        check_regular(f"{stem}.npy")
        images = np.lib.format.open_memmap(f"{stem}.npy", mode="r")[: record["count"]]
        labels = None if record["labels"] is None else np.array(record["labels"], np.int32)
        names, dropped, altered = tuple(record["class_names"]), dict(record["dropped"]), dict(record["altered"])
        if images.dtype != np.uint8 or digest(images, labels) != record["digest"]:
            return None
        if labels is not None and labels.shape != (len(images),):
            return None
        return Decoded(images, labels, names, dropped, altered, record["digest"])
    except _DAMAGED:
        return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
