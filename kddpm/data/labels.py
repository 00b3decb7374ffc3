"""Class labels: integers in 0 .. num_classes - 1. Needs no TensorFlow."""

import numpy as np

from kddpm.base.errors import InputError
from kddpm.base.types import Integers

MOST_CLASSES = 1_000_000  # each has a name in a run's config.json


def check(labels: np.ndarray, classes: int) -> None:
    """Check that labels are integers in 0 .. classes - 1.

    Raises:
        InputError: they are not.
    """
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            "labels", f"must be integers in 0 .. {classes - 1}", f"{labels.dtype} from {labels.min()} to {labels.max()}"
        )


def of_seeds(seeds: Integers, classes: int) -> np.ndarray:
    """Return the default labels of seeds: seed modulo classes, int32 (N,)."""
    return (np.asarray(seeds) % classes).astype(np.int32)
