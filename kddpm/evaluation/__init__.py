"""How good a model is, as numbers. Uses what `sampling` uses, and `sampling`.

Begin with `likelihood`: bits per dimension.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["likelihood"])

METRICS = ("bits_per_dim",)  # by name; known without TensorFlow
