"""Image data sets: sources, decoding and the order of training batches. Uses `base`.

Begin with `sources`, whose `load` reads a data set by name, and `order`, whose `batches` makes its training batches.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
