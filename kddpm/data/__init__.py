"""Images: where they come from, how they are decoded, in which order they are trained on. Uses `base`.

Begin with `sources`, whose `load` reads a data set by name, and `order`, whose `batches` puts it in order.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
