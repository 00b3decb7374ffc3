"""Reading of pictures to edit and writing of generated pictures, for `sample.py`. Needs no TensorFlow.

A picture to edit comes from an image file or a .npz archive; it is fitted to the model by the rules of
`kddpm.data.decoding`. A mask is an image file: white = keep the picture, black = paint it anew.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from kddpm.base.errors import InputError
from kddpm.base.files import expand, replacing
from kddpm.data import decoding, images, masks, npz_files

_FRAME_MS = 120  # duration of a frame of an interpolation


@dataclasses.dataclass(frozen=True)
class Photos:
    """Pictures to edit.

    Attributes:
        images: uint8 (N, H, W, C), in the model's size.
        sizes: (height, width) of each in its file.
        notes: how they were fitted, a line for each file that was changed.
    """

    images: np.ndarray
    sizes: list[tuple[int, int]]
    notes: list[str]

    @property
    def for_seeds(self) -> np.ndarray:
        """The pictures (N, H, W, C), one a seed; or a single one (H, W, C) for every seed."""
        return self.images[0] if len(self.images) == 1 else self.images


def read_inputs(
    edit: str, value: str, mask: str | None, image_shape: tuple[int, int, int]
) -> tuple[Photos, np.ndarray | None]:
    """Read the inputs of an edit: the pictures, and the mask of --inpaint.

    Args:
        edit: one of `sampling_flags.EDITS`.
        value: value of its flag: a file, or A,B for --interpolate.
        mask: the file of --mask, for --inpaint.
        image_shape: (H, W, C) of the model.

    Raises:
        InputError: as in `read_photos` and `read_mask`, or not two pictures for --interpolate.
    """
    height, width, channels = image_shape
    paths = value.split(",") if edit == "interpolate" else [value]
    photos = read_photos(f"--{edit}", paths, (height, width, channels))
    if edit == "interpolate" and len(photos.images) != 2:
        raise InputError(f"--interpolate must name two pictures, A.png,B.png. Received: {len(photos.images)}, {value}")
    if edit != "inpaint" or mask is None:
        return photos, None
    return photos, read_mask("--mask", mask, (height, width), photos.sizes[0])


def read_photos(name: str, paths: Sequence[str], image_shape: tuple[int, int, int]) -> Photos:
    """Read the pictures of image files and .npz archives, in the order of `paths`.

    Args:
        name: flag or argument to name in the error.
        paths: the files; one that does not end in .npz is an image file.
        image_shape: (H, W, C) of the model.

    Raises:
        InputError: a file is missing or holds no picture.
    """
    height, width, channels = image_shape
    arrays, sizes, notes = [], [], []
    for path in map(expand, paths):
        if pathlib.Path(path).suffix.lower() == ".npz":
            archive = npz_files.open_npz(f"{name}={path}", path)
            array = np.empty((archive.shape[0], *image_shape), np.uint8)
            _, altered = decoding.fit_arrays(archive.blocks(), array)
            changes, size = max(altered, key=altered.__getitem__, default=""), archive.shape[1:3]
        else:
            array, changes, size = decoding.read_image(name, path, (height, width), channels)
            array = array[np.newaxis]
        arrays.append(array)
        sizes += [size] * len(array)
        if changes:
            resized = f", from {size[1]}x{size[0]} to {width}x{height}" if tuple(size) != (height, width) else ""
            notes.append(f"{path}: {changes}{resized}")
    return Photos(np.concatenate(arrays), sizes, notes)


def read_mask(name: str, path: str, image_size: tuple[int, int], photo_size: tuple[int, int]) -> np.ndarray:
    """Read which pixels to keep.

    Args:
        name: flag or argument to name in the error.
        path: an image file of the model's size, or of the picture's: then it is cropped and resized like the picture,
            by area when it shrinks and by nearest pixel when it grows. What counts as white: `kddpm.data.masks`.
        image_size: (height, width) of the model.
        photo_size: (height, width) of the picture in its file.

    Returns:
        bool (height, width), True = white = keep.

    Raises:
        InputError: the file is missing, not a picture, of another size or without black.
    """
    path = expand(path)
    mask, _, size = decoding.read_image(name, path, None, 1)
    if size not in (tuple(image_size), tuple(photo_size)):
        expected = " or ".join(dict.fromkeys(f"{w}x{h}" for h, w in (image_size, photo_size)))
        raise InputError(f"{name} must be {expected}, as the picture is. Received: {path}, {size[1]}x{size[0]}")
    try:
        keep = masks.kept(mask[..., 0])
    except InputError as error:
        raise InputError(f"{name} {error.expected}. Received: {path}, {error.received}") from None
    has_black = not keep.all()
    if size != tuple(image_size):
        picture = Image.fromarray(np.where(keep, np.uint8(255), np.uint8(0)))
        resized, _ = decoding.to_array(picture, image_size, 1, enlarge=Image.Resampling.NEAREST)
        keep = resized[..., 0] > 127
    if keep.all():
        how = "whose black vanishes at the model's size" if has_black else "all white"
        raise InputError(f"{name} must have black in it, where to paint. Received: {path}, {how}")
    return keep


def check_names(out: pathlib.Path, seeds: Sequence[int], labels: Sequence[int] | None) -> None:
    """Check that the pictures of a folder have distinct file names.

    Raises:
        InputError: two pictures have the same name.
    """
    names = collections.Counter(_names(seeds, labels))
    name, count = names.most_common(1)[0]
    if not out.suffix and count > 1:
        raise InputError(f"--seeds must differ to name the files of a folder. Received: {count} times {name}")


def _names(seeds, labels) -> list[str]:
    return [f"{seed}.png" if label is None else f"{seed}_{label}.png" for seed, label in _pairs(seeds, labels)]


def _pairs(seeds, labels):
    return zip(seeds, [None] * len(seeds) if labels is None else labels, strict=True)


def save(
    out: pathlib.Path,
    pictures: np.ndarray,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    frames: np.ndarray | None = None,
    columns: int | None = None,
) -> None:
    """Write pictures in the form of the suffix: .png a grid, .gif an animation, .npz an archive, else a folder.

    Args:
        out: output path.
        pictures: uint8 (N, H, W, C).
        seeds: (N,); they name the files of a folder, SEED.png or SEED_LABEL.png.
        labels: (N,), None for a model without classes.
        frames: uint8 (frames, N, H, W, C), stages of the pictures, for .gif; for .png they become a filmstrip, a row a
            picture.
        columns: columns of a grid; None = as square as possible.
    """
    suffix = out.suffix.lower()
    if suffix == ".png":
        images.save_png(out, images.grid(pictures, columns) if frames is None else images.filmstrip(frames))
    elif suffix == ".gif" and frames is not None:
        images.save_gif(out, [images.grid(frame, columns) for frame in frames])
    elif suffix == ".npz":
        with replacing(out) as temporary:
            arrays: dict[str, Any] = {"images": pictures, "seeds": np.array(seeds, np.int32)}
            if labels is not None:
                arrays["labels"] = np.array(labels, np.int32)
            with open(temporary, "wb") as file:  # to a name of another suffix, such as .NPZ, NumPy would add its own
                np.savez_compressed(file, **arrays)
    else:
        for name, picture in zip(_names(seeds, labels), pictures, strict=True):
            images.save_png(out / name, picture)


def save_way(out: pathlib.Path, pictures: np.ndarray, columns: int | None = None) -> None:
    """Write an interpolation (N, H, W, C) like `save`, but a grid has one row, an animation repeats to and fro, and
    indices replace seeds."""
    if out.suffix.lower() == ".gif":
        frames = [images.grid(picture[np.newaxis]) for picture in (*pictures, *pictures[-2:0:-1])]
        images.save_gif(out, frames, duration_ms=_FRAME_MS, hold_ms=_FRAME_MS)
    else:
        save(out, pictures, range(len(pictures)), columns=columns or len(pictures))
