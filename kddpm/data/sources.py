"""Loading of data sets by name.

| spec | what is read |
|---|---|
| `digits` | 1,797 real digits of 8x8 pixels that come with the package |
| `npz:FILE` | a NumPy archive with uint8 `images` (or `x_train`, or `x`) and perhaps `labels` (`y_train`, `y`) |
| `folder:DIR` | image files, flat or one subfolder a class |
| `zip:FILE` | the same, zipped; nothing is extracted |
| `tfds:NAME[:SPLIT]` | TensorFlow Datasets, split `train` unless named |
"""

import dataclasses
import importlib.resources
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from kddpm.base import extras
from kddpm.base.errors import InputError
from kddpm.base.files import expand
from kddpm.data import decoding, image_cache, image_files, npz_files

KINDS = ("digits", "npz:FILE", "folder:DIR", "zip:FILE", "tfds:NAME[:SPLIT]")
_MOST_KINDS = 4  # kinds of changes that are listed
_FORMAT = 2  # of a cached array; increase it if the same files would give other pixels, or its JSON file changes


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set, decoded."""

    images: np.ndarray  # uint8 (N, H, W, C); may be an np.memmap
    labels: np.ndarray | None  # int32 (N,), or None
    class_names: tuple[str, ...]  # () when there are no labels
    source: str  # the spec
    digest: str  # sha256 hex over shape, pixels and labels, in order
    # {changes: number of images} of those that are not bit for bit what the decoder returned: cropped, resized,
    # recoloured, cut from 16 bits to 8, laid over white. Each image counts once.
    altered: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def changes(self) -> str:
        """`altered` as text: how many images were changed, and the most frequent changes; "" = none was."""
        if not self.altered:
            return ""
        kinds = sorted(self.altered.items(), key=lambda item: -item[1])
        text = ", ".join(f"{count:,} {done}" for done, count in kinds[:_MOST_KINDS])
        more = ", ..." if len(kinds) > _MOST_KINDS else ""
        return f"{sum(self.altered.values()):,} of {len(self.images):,} changed ({text}{more})"


@dataclasses.dataclass(frozen=True)
class _Source:
    stamps: list  # JSON values that change with the data
    shape: Callable[[], tuple[int, int, int, int]]
    fill: Callable[[np.ndarray], image_cache.Filled]


def load(
    dataset: str,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    tfds_data_dir: str | None = None,
    cache_dir: str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> ImageData:
    """Load a whole data set, in memory up to 2 GiB, above that in a memory-mapped file.

    Args:
        dataset: a spec of the table in the module's docstring.
        image_size: None = the size of the images, which must then be the same for all; an int = a square; or
            (height, width). Images of another size are cropped around the centre and resized, as in `decoding`.
        channels: None = 1 if every image is grey, else 3; 1 = luma; 3 = RGB.
        tfds_data_dir: where TensorFlow Datasets keeps its files; None = its own default.
        cache_dir: folder for decoded images above 2 GiB, which later runs reuse; None = refuse them.
        skip_bad_images: True leaves unreadable files out and lists them on stderr; False lists them in the error.
        progress: show a bar on stderr if there are many files.

    Returns:
        The images, labels, class names and digest.

    Raises:
        InputError: a value or a file that cannot be used; the message names it.

    Example:
        >>> kddpm.data.load("digits").images.shape
        (1797, 8, 8, 1)
    """
    size = _checked_size(image_size)
    if channels not in (None, 1, 3):
        raise InputError("channels", "must be 1, 3 or None", repr(channels))
    dataset = os.fspath(dataset)
    kind, _, rest = dataset.partition(":")
    if kind in ("npz", "folder", "zip"):
        rest = expand(rest)
    cache_dir, tfds_data_dir = (path and expand(path) for path in (cache_dir, tfds_data_dir))
    shown = image_files.printable(dataset)
    if dataset == "digits":
        path = str(importlib.resources.files("kddpm") / "assets" / "digits.npz")
        source = _npz(shown, path, size, channels)
    elif kind == "npz" and rest:
        source = _npz(shown, rest, size, channels)
    elif kind in ("folder", "zip") and rest:
        files = image_files.open_folder(rest) if kind == "folder" else image_files.open_zip(rest)
        if files.others:
            print(f"{shown}: {image_files.count_kinds(files.others)}", file=sys.stderr)
        source = _image_files(files, rest, size, channels, skip_bad_images, progress)
    elif kind == "tfds" and rest:
        source = _tfds(dataset, size, channels, tfds_data_dir)
    else:
        raise InputError("dataset", f"must be one of {', '.join(KINDS)}", repr(dataset))
    manifest = [_FORMAT, dataset, source.stamps, size, channels, bool(skip_bad_images)]
    result = image_cache.decoded(shown, manifest, source.shape, source.fill, cache_dir)
    if result.dropped:
        print(
            f"{shown}: left out {len(result.dropped)} image files that cannot be used:\n"
            f"{image_files.list_bad(result.dropped)}",
            file=sys.stderr,
        )
    return ImageData(result.images, result.labels, result.class_names, dataset, result.digest, result.altered)


def _checked_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int | np.integer) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(n, int | np.integer) and n >= 1 for n in size):
        raise InputError("image_size", "must be a number or height,width, each at least 1", repr(image_size))
    return int(size[0]), int(size[1])


def _image_files(
    files: image_files.ImageFiles,
    path: str,
    size: tuple[int, int] | None,
    channels: int | None,
    skip: bool,
    progress: bool,
) -> _Source:
    def fill(out: np.ndarray) -> image_cache.Filled:
        undecoded, altered = decoding.decode_all(files, out, progress)
        bad = files.bad | undecoded
        total = len(files.names) + len(files.bad)
        if bad and not skip:
            raise InputError(
                f"{files.spec}: {len(bad)} of {total} image files cannot be used "
                "({skip_bad_images} leaves them out):\n"
                f"{image_files.list_bad(bad)}",
                skip_bad_images=...,
            )
        kept = [i for i, name in enumerate(files.names) if name not in undecoded]
        if not kept:
            raise InputError(f"{files.spec}: none of the {total} images is readable:\n{image_files.list_bad(bad)}")
        for to, of in enumerate(kept):  # in place: `to` is never ahead of `of`
            if to != of:
                out[to] = out[of]
        labels = None if files.labels is None else files.labels[kept]
        return image_cache.Filled(len(kept), labels, files.class_names, bad, altered)

    def shape() -> tuple[int, int, int, int]:
        return len(files.names), *decoding.common_shape(files, size, channels, progress)

    return _Source([os.path.abspath(path), files.stamps, sorted(files.bad)], shape, fill)


def _npz(spec: str, path: str, size: tuple[int, int] | None, channels: int | None) -> _Source:
    archive = npz_files.open_npz(spec, path)
    target = (archive.shape[0], *(size or archive.shape[1:3]), channels or (1 if archive.shape[3] == 1 else 3))

    def fill(out: np.ndarray) -> image_cache.Filled:
        _, altered = decoding.fit_arrays(archive.blocks(), out)
        return image_cache.Filled(len(out), archive.labels, _numbered(archive.labels), altered=altered)

    info = os.stat(path)
    return _Source([os.path.abspath(path), info.st_size, info.st_mtime_ns], lambda: target, fill)


def _numbered(labels: np.ndarray | None) -> tuple[str, ...]:
    return () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))


def _tfds(spec: str, size: tuple[int, int] | None, channels: int | None, data_dir: str | None) -> _Source:
    extras.need("tfds", "{dataset}", dataset=spec)
    import tensorflow_datasets as tfds

    name, _, split = spec.removeprefix("tfds:").partition(":")
    split = split or "train"
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
        count = builder.info.splits[split].num_examples
        features = builder.info.features
    except Exception as error:  # parsing the name, the network and more all raise classes of their own
        text = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{spec}: cannot load `{name}`, split `{split}`: {text}") from None
    parts = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    feature, label = parts.get("image"), parts.get("label")
    if feature is None or feature.np_dtype != np.uint8 or len(feature.shape) != 3 or feature.shape[2] not in (1, 3, 4):
        raise InputError(
            f"{spec}: expected a feature `image` of uint8, with 1, 3 or 4 channels. Received: {_one_line(features)}"
        )
    if label is not None and (label.shape != () or np.dtype(label.np_dtype).kind not in "iu"):
        raise InputError(f"{spec}: expected a feature `label` of one integer. Received: {_one_line(label)}")
    if not count:
        raise InputError(f"{spec}: the split `{split}` has no images")

    def examples() -> Iterator[dict]:
        return iter(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))

    def shape() -> tuple[int, int, int, int]:
        common = size
        if common is None:
            sizes = {feature.shape[:2]} if None not in feature.shape else {e["image"].shape[:2] for e in examples()}
            if len(sizes) > 1:
                text = ", ".join(f"{w}x{h}" for h, w in sorted(sizes)[:8]) + (", ..." if len(sizes) > 8 else "")
                raise InputError(
                    f"{spec}: the images differ in size; name one with {{image_size}}. "
                    f"Received, as width x height: {text}",
                    image_size=...,
                )
            common = sizes.pop()
        return count, *common, channels or (1 if feature.shape[2] == 1 else 3)

    def fill(out: np.ndarray) -> image_cache.Filled:
        labels = np.zeros(count, np.int64)

        def blocks() -> Iterator[np.ndarray]:
            for i, example in enumerate(examples()):
                labels[i] = example["label"] if label is not None else 0
                yield example["image"][None]

        written, altered = decoding.fit_arrays(blocks(), out)
        if written != count:
            raise InputError(f"{spec}: expected {count} images. Received: {written}")
        if label is None or labels.min() < 0:  # -1 marks a split whose labels are kept secret
            return image_cache.Filled(count, None, (), altered=altered)
        names = tuple(label.names) if hasattr(label, "names") else _numbered(labels)
        return image_cache.Filled(count, labels.astype(np.int32), names, altered=altered)

    return _Source([builder.data_dir, split, count], shape, fill)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
