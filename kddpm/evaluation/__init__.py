"""Measures the quality of a model. Uses `sampling` and what that uses.

Begin with `likelihood`: bits per dimension, by the bound; `ode_likelihood` has those of the probability-flow ODE. Of
generated pictures: `metrics`, functions of features.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["likelihood", "metrics", "ode_likelihood"])

METRICS = ("bits_per_dim", "ode_bits_per_dim")  # names, available without TensorFlow
DIVERGENCES = ("hutchinson", "exact")  # and dequantizations, of the ODE
DEQUANTIZATIONS = ("noise", "uniform")
