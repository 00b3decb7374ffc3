"""Atomic replacement, locks, checks and digests of files and folders."""

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
PART = ".part-"  # prefix of the temporary folders of `replacing`


def expand(path: str | os.PathLike) -> str:
    """Return a path with a home folder in place of `~` or `~USER`, as a shell has it; other paths stay as they are.

    Shells expand `--run_dir ~/x`, but not `--run_dir=~/x`, and nothing between quotes.

    Raises:
        InputError: no such user, nor a file or folder of that name.
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text)
    first = expanded.split(os.sep, 1)[0]
    if first.startswith("~") and not os.path.lexists(first):
        raise InputError(f"A path can begin with {first} only for a user, or a file, of that name. Received: {text}")
    return expanded


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path to write to; rename it to `path` if the block succeeds.

    The temporary path has the same name, in a folder of its own next to `path`. The block may make a file or a folder
    there; it replaces what was at `path`.

    Example:
        >>> with replacing("grid.png") as temporary:
        ...     temporary.write_bytes(content)
    """
    path = pathlib.Path(expand(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=path.parent, ignore_cleanup_errors=True) as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        if temporary.is_dir() and path.exists():  # os.replace refuses to rename a folder over another
            old = temporary.with_name(f"{path.name}.old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
        else:
            os.replace(temporary, path)


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Lock a file or folder exclusively for this process until the block or the process ends, even by a kill.

    On systems without such locks the block runs unlocked.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the path cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a network disk without locks
                pass
        yield
    finally:
        os.close(handle)


def check_regular(path: str | os.PathLike) -> None:
    """Check that a path is a regular file: reading a pipe or a device might never end.

    Raises:
        OSError: the path is missing or not a regular file.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"{os.fspath(path)} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")


def read_json(path: str | os.PathLike, most_bytes: int = _MOST_JSON_BYTES) -> Any:
    """Return the content of a JSON file of at most `most_bytes`.

    Raises:
        OSError or ValueError: the file is missing, too large or not valid JSON.
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
    """Return the SHA-256 digest of a file, in hexadecimal."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(name: str, path: str | os.PathLike, is_folder: bool) -> None:
    """Check that output can be written at `path`, before doing the work for it.

    Args:
        name: name of the argument.
        path: where the output will go.
        is_folder: whether the output is a folder rather than a file.

    Raises:
        InputError: a file is where a folder should go, a folder is where a file should, or the folder, or else the
            parent folder, is not writable.
    """
    path = pathlib.Path(expand(path))
    if not path.name:
        raise InputError(name, "must have a name of its own", path)
    if path.exists() and path.is_dir() != is_folder:
        expected = "a folder" if is_folder else "a file"
        raise InputError(name, f"must be {expected}", f"{path}, which is there and is not")
    folders = path.absolute().parents if not is_folder else (path.absolute(), *path.absolute().parents)
    folder = next(folder for folder in folders if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(name, "must be in a folder that can be written to", path)
