"""Files that are whole or not there."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """A path beside `path` to write to, with the same suffix; renamed to `path` if the block ends well, else removed.

    Example:
        >>> with replacing("grid.png") as beside:
        ...     beside.write_bytes(content)
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"part.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
