"""Names for types in signatures. Shapes, units and what is expected of the values stand in the docstrings."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Tensor: TypeAlias = Any  # what the backend computes with: a NumPy array, a TensorFlow or a Keras tensor
Integers: TypeAlias = Sequence[int] | np.ndarray  # one-dimensional
Shape: TypeAlias = tuple[Any, ...]  # of a tensor, its integers, None = any size; or of several, one such tuple each
Config: TypeAlias = dict[str, Any]  # arguments of a constructor, as JSON or Keras's serialisation holds them
Logs: TypeAlias = dict[str, Any]  # what Keras gives to callbacks
