"""Denoising diffusion probabilistic models (Ho et al. 2020) for Keras, with generation on the device.

`__init__.pyi` lists the public names, one a line; each is imported when it is first used, so that `--help` and
`--dry_run` need no TensorFlow. docs/architecture.md describes the layout.
"""

import importlib
import sys

import lazy_loader

from kddpm.base.version import __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

if "keras" in sys.modules:  # keras.models.load_model finds registered classes; importing registers them
    importlib.import_module("kddpm.model.diffusion_model")
    importlib.import_module("kddpm.networks.unet")
