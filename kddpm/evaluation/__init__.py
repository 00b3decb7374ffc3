"""Measures the quality of a model. Uses `sampling`, `cli` and what they use.

Begin with `likelihood`: bits per dimension, by the bound; `ode_likelihood` has those of the probability-flow ODE. Of
generated pictures: `metrics`, functions of features; `features` has the extractors, and
`python -m kddpm.evaluation.extractor` trains one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["features", "inception", "likelihood", "metrics", "ode_likelihood"]
)

# Names, available without TensorFlow.
BITS = ("bits_per_dim", "ode_bits_per_dim")
OF_PICTURES = ("fid", "kid", "precision_recall", "accuracy", "cas", "copies")
METRICS = BITS + OF_PICTURES
OF_EXTRACTORS = ("fid", "kid", "precision_recall", "accuracy")  # need one
SHIPPED = ("digits", "mnist")  # extractors that come with the package
DIVERGENCES = ("hutchinson", "exact")  # and dequantizations, of the ODE
DEQUANTIZATIONS = ("noise", "uniform")
