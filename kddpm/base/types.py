"""Type aliases for signatures. The docstrings give shapes, units and value ranges."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Tensor: TypeAlias = Any  # a NumPy array, a TensorFlow tensor or a Keras tensor
Integers: TypeAlias = Sequence[int] | np.ndarray  # one-dimensional
Shape: TypeAlias = tuple[Any, ...]  # integers, None = any size; or one such tuple for each of several tensors
Config: TypeAlias = dict[str, Any]  # constructor arguments, serialised for JSON or Keras
Logs: TypeAlias = dict[str, Any]  # what Keras passes to callbacks
