"""Measures the quality of a model. Uses `sampling` and what that uses.

Begin with `likelihood`: bits per dimension.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["likelihood"])

METRICS = ("bits_per_dim",)  # names, available without TensorFlow
