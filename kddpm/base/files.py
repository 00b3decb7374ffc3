"""Files and folders that are whole or not there."""

import contextlib
import hashlib
import json
import os
import pathlib
import stat
import tempfile
import types
from collections.abc import Iterator
from typing import Any

from kddpm.base.errors import InputError

fcntl: types.ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_MOST_JSON_BYTES = 2**25
PART = ".part-"  # begins the names of the folders of `replacing`


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path of the same name, in a folder of its own beside `path`, to write to; moved there if the block ends well.

    Whatever the block makes there, a file or a folder, takes the place of what was there before.

    Example:
        >>> with replacing("grid.png") as beside:
        ...     beside.write_bytes(content)
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=path.parent, ignore_cleanup_errors=True) as folder:
        beside = pathlib.Path(folder) / path.name
        yield beside
        if beside.is_dir() and path.exists():  # a folder is not renamed over another
            old = beside.with_name(f"{path.name}.old")
            os.replace(path, old)
            try:
                os.replace(beside, path)
            except OSError:
                os.replace(old, path)
                raise
        else:
            os.replace(beside, path)


@contextlib.contextmanager
def held(path: str | os.PathLike) -> Iterator[None]:
    """Hold a file or folder for this process alone: until the block ends, or the process does, however it does.

    Where the system has no such locks the block runs all the same.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a network disk that does not do this
                pass
        yield
    finally:
        os.close(handle)


def check_regular(path: str | os.PathLike) -> None:
    """Whether there is a file that ends: a pipe or a device may not.

    Raises:
        OSError: there is none.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"{os.fspath(path)} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")


def read_json(path: str | os.PathLike, most_bytes: int = _MOST_JSON_BYTES) -> Any:
    """What a JSON file says that is no larger than that.

    Raises:
        OSError or ValueError: no such file, or no such JSON.
    """
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than the {most_bytes:,} bytes that are read")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its lists or objects lie too deep") from None


def sha256(path: str | os.PathLike) -> str:
    """The hash of a file, in hexadecimal."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(name: str, path: str | os.PathLike, is_folder: bool) -> None:
    """Whether something can be written at `path`, before the work that it is for.

    Args:
        name: of the argument.
        path: where to write.
        is_folder: whether a folder will be written there, or a file.

    Raises:
        InputError: a file where a folder is meant, a folder where a file is, or a place that cannot be written to.
    """
    path = pathlib.Path(path)
    if not path.name:
        raise InputError(name, "must have a name of its own", path)
    if path.exists() and path.is_dir() != is_folder:
        expected = "a folder" if is_folder else "a file"
        raise InputError(name, f"must be {expected}", f"{path}, which is there and is not")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(name, "must be in a folder that can be written to", path)
