"""Files of results: JSON with a key a line, which no result of another question replaces unasked."""

import json
import math
import pathlib
from collections.abc import Collection

import numpy as np

from kddpm.base.errors import InputError
from kddpm.base.files import read_json, replacing


def check_place(path: pathlib.Path, facts: dict, asked: Collection[str], options: dict, overwrite: bool) -> None:
    """Check that a result may be written at `path`.

    Args:
        path: the JSON file.
        facts: what the result will say, as far as it is known.
        asked: keys of `facts` that make the question: results that differ in one answer another.
        options: more of it; results from before an option was there have None.
        overwrite: whether any result may be replaced.

    Raises:
        InputError: a result of another question is there, and `overwrite` is False.
    """
    if overwrite or not path.exists():
        return
    try:
        before = read_json(path)
        other = [name for name in asked if before[name] != facts[name]]
        other += [name for name, value in options.items() if before.get(name) != value]
    except (OSError, ValueError, KeyError, TypeError):
        other = ["format"]
    if other:
        raise InputError(
            "out",
            f"has a result of another {' and '.join(other)}; name another folder, or {{overwrite}} it",
            path,
            overwrite=...,
        )


def write_json(path: pathlib.Path, content: dict) -> None:
    """Write JSON with one key a line, arrays as lists, and null for NaN and infinities; NumPy's numbers as Python's."""

    def plain(value):
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    lines = (f"  {json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}" for key, value in content.items())
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
