"""The U-Net and its layers, in plain `keras.ops`. Uses `base`.

Begin with `unet`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["contract", "layers", "unet"])
