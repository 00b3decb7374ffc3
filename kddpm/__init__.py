"""Denoising diffusion probabilistic models (Ho et al. 2020) for Keras, with generation on the device.

`__init__.pyi` lists the public names, one a line; each is imported when it is first used, so that `--help` and
`--dry_run` need no TensorFlow. docs/architecture.md describes the layout.
"""

import importlib
import sys

import lazy_loader

from kddpm.base import settings
from kddpm.base.version import __version__

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
_ON_TENSORFLOW = (
    *("BitsPerDim", "Denoiser", "DiffusionModel", "device", "editing", "generation", "likelihood", "load_run"),
    *("noise", "toy", "train", "training", "walks"),
)


def __getattr__(name: str) -> object:
    if name in _ON_TENSORFLOW:
        settings.check_backend()
    try:
        return _attribute(name)
    except (ImportError, ValueError):
        if "keras" not in sys.modules:  # its backend is not there
            settings.check_backend()
        raise


if "keras" in sys.modules:  # keras.models.load_model finds registered classes; importing registers them
    importlib.import_module("kddpm.networks.unet")
    if settings.backend()[0] == "tensorflow":
        importlib.import_module("kddpm.model.diffusion_model")
