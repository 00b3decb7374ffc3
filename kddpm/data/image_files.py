"""Lists of the image files in a folder or a zip archive, with their order and classes.

The files themselves are not opened here: `kddpm.data.decoding` turns them into arrays. A file that cannot be used does
not stop the others: it is put in a {name: reason} dictionary, so that one error can list them all.
"""

import collections
import dataclasses
import os
import re
import stat
import threading
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
from PIL import features

from kddpm.base import archives
from kddpm.base.errors import InputError, first_line

# {Pillow's name of a format: its suffixes}. No other decoder is used, whatever a file's name: Pillow has more, some of
# which start programs (EPS, WMF), hold no picture of their own (HDF5, MPEG) or hold several (ICO, ICNS).
_SUFFIXES = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "WEBP": ("webp",),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "DIB": ("dib",),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "QOI": ("qoi",),
    "SGI": ("sgi", "rgb", "rgba", "bw"),
    "PCX": ("pcx",),
    "TGA": ("tga",),
}
_LIBRARIES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # without which Pillow may have been built
FORMATS = tuple(name for name in _SUFFIXES if name not in _LIBRARIES or features.check(_LIBRARIES[name]))
_EXTENSIONS = tuple(suffix for name in FORMATS for suffix in _SUFFIXES[name])
# Their first bytes do not tell them from damaged or foreign files: they are believed where the suffix says the same.
_UNSIGNED = ("SGI", "PCX", "TGA")
_FOREIGN = ("heic", "heif", "jxl")  # what phones and cameras write and Pillow itself never reads
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")  # which systems leave in folders of pictures
MAX_FILE_BYTES = 2**30  # limit of one encoded file; a zip member may claim any size
MAX_LISTED = 50
_MOST_KINDS = 8  # named in a line about files that were left out
_NUMBER = re.compile("[0-9]+")


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The image files of one spec, in a fixed order, not decoded yet."""

    spec: str
    names: list[str]  # natural order, "/" between the parts
    stamps: list[list]  # [name, bytes, time or checksum] of each file, which change with its content
    labels: np.ndarray | None  # int32 (N,), or None without class folders
    class_names: tuple[str, ...]
    bad: dict[str, str]  # {name: reason} of the files refused without opening them
    others: collections.Counter[str]  # {suffix: number of files} of those that are no images by their names
    read: Callable[[int], bytes]  # returns the encoded bytes of file i


def natural_key(name: str) -> tuple[str, str]:
    """Return a sort key: "img2" before "img10", the files of folder "a" before "a-b"; ties go by the name."""
    return _NUMBER.sub(_by_value, name).replace("/", "\0"), name


def _by_value(number: re.Match) -> str:
    """Rewrite digits to sort by value and before any letter; int() would refuse very long ones, and take memory."""
    digits = number[0].lstrip("0")
    return f"\1{chr(len(digits))}{digits}"


def printable(name: str) -> str:
    """Return the name on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def list_bad(bad: dict[str, str]) -> str:
    """Return one indented line for each of the first 50 files, then a count of the others."""
    lines = [f"  {printable(name)}: {bad[name]}" for name in sorted(bad, key=natural_key)]
    more = [f"  and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n".join(lines[:MAX_LISTED] + more)


def formats_of(name: str) -> tuple[str, ...]:
    """Return the names of the decoders that may open a file of this name."""
    suffix = _suffix(name)
    return tuple(f for f in FORMATS if f not in _UNSIGNED or suffix in _SUFFIXES[f])


def count_kinds(others: collections.Counter[str]) -> str:
    """Return how many files of each suffix were left out, in a line: "30 files left out: 20 .txt, 10 .heic (...)"."""
    pictures = {*_FOREIGN, *(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)}
    texts = [
        f"{count:,} {f'.{printable(suffix)}' if suffix else 'without a suffix'}"
        + (" (this Pillow cannot read it)" if suffix in pictures else "")
        for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))
    ]
    total = others.total()
    more = ", ..." if len(texts) > _MOST_KINDS else ""
    return f"{total:,} file{'s' * (total != 1)} left out: {', '.join(texts[:_MOST_KINDS])}{more}"


def open_folder(path: str) -> ImageFiles:
    """List the images of a folder, which is flat or has one subfolder a class.

    Hidden files and folders and what systems leave (Thumbs.db) are ignored. Files without an image's
    suffix are counted.

    Args:
        path: the folder.

    Returns:
        The files. Symbolic links that lead out of the folder, or to a folder, are listed as bad.

    Raises:
        InputError: the folder does not exist, holds no image, or is neither flat nor one subfolder a class.
    """
    spec = f"folder:{printable(path)}"
    if not os.path.isdir(path):
        raise InputError(f"{spec}: expected a folder; {_what_is_there(path)}")
    root = os.path.realpath(path)
    found: list[list] = []
    bad, others, folders = {}, collections.Counter[str](), [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(path, folder)))
        except OSError as error:
            raise InputError(f"{spec}: cannot read the folder {printable(folder) or '.'!r}: {error.strerror}") from None
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _is_litter(entry.name):
                continue
            if entry.is_symlink() and (os.path.isdir(entry.path) or _has_extension(name)):
                target = os.path.realpath(entry.path)
                if os.path.commonpath([root, target]) != root:
                    bad[name] = "symbolic link that leads out of the folder"
                    continue
                if os.path.isdir(target):
                    bad[name] = "symbolic link to a folder; expected an image file"
                    continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif not _has_extension(name):
                others[_suffix(name)] += 1
            else:
                try:
                    info = os.stat(entry.path)
                except OSError as error:
                    bad[name] = error.strerror or str(error)
                    continue
                if stat.S_ISREG(info.st_mode):
                    found.append([name, info.st_size, info.st_mtime_ns])
                else:
                    bad[name] = "not a regular file"
    found.sort(key=lambda stamp: natural_key(stamp[0]))
    names = [stamp[0] for stamp in found]
    labels, class_names = _classes(spec, names, bad, others)

    def read(i: int) -> bytes:
        with open(os.path.join(path, names[i]), "rb", opener=_without_waiting) as file:
            info = os.fstat(file.fileno())
            if [names[i], info.st_size, info.st_mtime_ns] != found[i]:
                raise ValueError("it changed after it was listed")
            check_file_size(info.st_size)
            return file.read(info.st_size)

    return ImageFiles(spec, names, found, labels, class_names, bad, others, read)


def open_zip(path: str) -> ImageFiles:
    """List the images of a zip archive, which is read in place: nothing is extracted.

    A top folder that all images share is stripped; below it the layout is that of `open_folder`, and so is what
    is ignored and what is counted.

    Args:
        path: the archive.

    Returns:
        The files. Members with an absolute name or with ".." in it are listed as bad.

    Raises:
        InputError: the file is missing or not a zip archive, holds no image, or has another layout.
    """
    spec = f"zip:{printable(path)}"
    try:
        archive = archives.opened(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:  # the last: unknown zip version
        raise InputError(f"{spec}: expected a zip archive; {_what_is_there(path, error)}") from None
    found, bad, others = [], {}, collections.Counter[str]()
    for member in archive.infolist():
        parts = member.filename.replace("\\", "/").split("/")
        if any(_is_litter(part) for part in parts if part != "..") or member.filename.endswith("/"):
            continue
        if not _has_extension(parts[-1]):
            others[_suffix(parts[-1])] += 1
        elif parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:$", parts[0]):
            bad[member.filename] = "a member's name must be relative and without '..'"
        else:
            found.append(("/".join(parts), member))
    tops = {name.split("/", 1)[0] if "/" in name else None for name, _ in found}
    if len(tops) == 1 and None not in tops:
        found = [(name.split("/", 1)[1], member) for name, member in found]
    found.sort(key=lambda pair: natural_key(pair[0]))
    names = [name for name, _ in found]
    labels, class_names = _classes(spec, names, bad, others)
    lock = threading.Lock()  # the members share one file position

    def read(i: int) -> bytes:
        check_file_size(found[i][1].file_size)
        with lock:
            return archives.read_member(archive, found[i][1])

    stamps = [[name, member.file_size, member.CRC] for name, member in found]
    return ImageFiles(spec, names, stamps, labels, class_names, bad, others, read)


def check_file_size(size: int) -> None:
    """Check that an encoded file is at most `MAX_FILE_BYTES` large.

    Raises:
        ValueError: it is larger.
    """
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes; expected at most {MAX_FILE_BYTES:,}")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # if a pipe has replaced the file, do not wait for its writer


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _has_extension(name: str) -> bool:
    return _suffix(name) in _EXTENSIONS


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _what_is_there(path: str, error: Exception | None = None) -> str:
    if not os.path.exists(path):
        return "no such file or folder"
    if os.path.isdir(path):
        return "this is a folder"
    if not os.path.isfile(path):
        return "this is no regular file"
    if os.path.getsize(path) == 0:
        return "this file is empty"
    return "this is another kind of file, or a damaged one" + (f": {first_line(error)}" if error else "")


def _classes(
    spec: str, names: list[str], bad: Iterable[str], others: collections.Counter[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return labels and class names from the folders of the sorted names."""
    if not names and not bad:
        there = count_kinds(others) if others else "no files"
        raise InputError(f"{spec}: no image found; {there}. Expected {', '.join(FORMATS)}")
    folders = [name.rpartition("/")[0] for name in names]
    deep = next((name for name, folder in zip(names, folders, strict=True) if "/" in folder), None)
    if deep is not None:
        raise InputError(
            f"{spec}: expected images at the top, or one subfolder a class. Received deeper ones: {printable(deep)}"
        )
    if not any(folders):
        return None, ()
    if not all(folders):
        top, inner = names[folders.index("")], names[next(i for i, folder in enumerate(folders) if folder)]
        raise InputError(
            f"{spec}: expected images at the top, or one subfolder a class, not both. "
            f"Received {printable(top)} and {printable(inner)}"
        )
    class_names = tuple(dict.fromkeys(folders))  # in natural order, as the names are
    index = {name: i for i, name in enumerate(class_names)}
    return np.array([index[folder] for folder in folders], np.int32), class_names
