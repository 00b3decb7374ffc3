"""Class labels: integers in 0 .. num_classes - 1. Needs no TensorFlow."""

from collections.abc import Sequence

import numpy as np

from kddpm.base.errors import InputError
from kddpm.base.types import Integers

MOST_CLASSES = 1_000_000  # each has a name in a run's config.json


def check(labels: np.ndarray, classes: int) -> None:
    """Check that labels are integers in 0 .. classes - 1.

    Raises:
        InputError: they are not.
    """
    expected = f"must be integers in 0 .. {classes - 1}"
    if labels.dtype.kind not in "iuf":
        raise InputError("labels", expected, labels.dtype)
    low, high = labels.min(), labels.max()
    if labels.dtype.kind == "f" or low < 0 or high >= classes:
        raise InputError("labels", expected, f"{labels.dtype} from {low} to {high}")


def shown(names: Sequence[str]) -> str:
    """Return names of classes as text, the first eight of many."""
    return f"{', '.join(names[:8]) or 'none'}{f', ... ({len(names)})' if len(names) > 8 else ''}"


def of_seeds(seeds: Integers, classes: int) -> np.ndarray:
    """Return the default labels of seeds: seed modulo classes, int32 (N,)."""
    return (np.asarray(seeds) % classes).astype(np.int32)
