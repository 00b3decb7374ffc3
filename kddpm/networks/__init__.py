"""The U-Net and its layers, in plain `keras.ops`, and the contract of every network. Uses `base`.

`fused` is a faster form of the layers for TensorFlow on a CPU.

Begin with `unet`, or with `contract` for a network of your own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["contract", "layers", "unet"])
