"""Checks of single arguments: numbers, counts, lists of integers. Needs no TensorFlow."""

import math
import numbers
from collections.abc import Iterable

import numpy as np

from kddpm.base.errors import InputError


def number(name: str, value: object) -> float:
    """Return `value` as a float.

    Raises:
        InputError: `value` is not a finite real number.
    """
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(name, "must be a number", repr(value))
    return float(value)


def count(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int.

    Raises:
        InputError: `value` is not an integer of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(name, f"must be an integer of at least {least}", repr(value))
    return int(value)


def counts(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Return `values` as a tuple of ints, which may be empty.

    Raises:
        InputError: `values` is not a list of integers of at least `least`.
    """
    try:
        return tuple(count(name, value, least) for value in values)  # type: ignore[attr-defined]
    except (TypeError, InputError):
        raise InputError(name, f"must be a list of integers of at least {least}", repr(values)) from None


def int32(name: str, values: object) -> np.ndarray:
    """Return `values` as int32 (N,), N > 0.

    Raises:
        InputError: `values` is not a non-empty list of integers, or they do not fit int32.
    """
    array = np.asarray(list(values) if isinstance(values, Iterable) and not hasattr(values, "dtype") else values)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InputError(name, "must be a non-empty list of integers", repr(values))
    if array.min() < -(2**31) or array.max() >= 2**31:
        raise InputError(name, "must fit int32", f"values from {array.min()} to {array.max()}")
    return array.astype(np.int32)


def shortest(value: object) -> str:
    """Return the shortest text that means a number in its type, such as 1.0000002 of a float32."""
    return str(value).removesuffix(".0")
