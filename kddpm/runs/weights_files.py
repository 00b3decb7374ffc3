"""Weights in Keras's HDF5 files, with their digest in a second file.

    ema.weights.h5       the weights
    ema.weights.json     their sha256, and that of the previous file

The digest is written first: a kill between the two leaves the old weights, whose digest it also holds. A file is
checked before any weights are read, as it may be untrusted (`kddpm.base.hdf5`).
"""

import json
import math
import os
import pathlib

import keras

from kddpm.base import hdf5
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import expand, read_json, replacing, sha256


def save(network: keras.Model, path: str | os.PathLike) -> None:
    """Write the weights of a network, atomically."""
    path = pathlib.Path(expand(path))
    before = sha256(path) if path.exists() else None
    with replacing(path) as temporary:
        network.save_weights(temporary)
        with replacing(hash_file(path)) as temporary_hash:
            temporary_hash.write_text(json.dumps({"sha256": sha256(temporary), "before": before}) + "\n")


def load(network: keras.Model, path: str | os.PathLike) -> None:
    """Read the weights of a network.

    Raises:
        InputError: the file is damaged, links to other files or does not fit the network.
    """
    path = pathlib.Path(expand(path))
    try:
        _check_hash(path)
        hdf5.check_content(path, 4 * sum(math.prod(weight.shape) for weight in network.weights))
        network.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read, or does not fit config.json: {first_line(error)}") from None


def check_size(path: str | os.PathLike, parameters: int) -> None:
    """Check that a file is large enough for that many parameters, before building a network of that size.

    Raises:
        InputError: the file is too small.
    """
    size = os.path.getsize(expand(path))
    if size < 4 * parameters:
        raise InputError(
            f"{path} cannot be read, or does not fit config.json: it has {size:,} bytes, and config.json asks for "
            f"{parameters:,} parameters of 4"
        )


def hash_file(path: str | os.PathLike) -> pathlib.Path:
    """Return the path of the digest of NAME.weights.h5: NAME.weights.json."""
    return pathlib.Path(expand(path)).with_suffix(".json")


def _check_hash(path):
    if not hash_file(path).exists():
        return
    known = read_json(hash_file(path))
    if sha256(path) not in (known["sha256"], known["before"]):
        raise ValueError(f"its sha256 is not that in {hash_file(path).name}")
