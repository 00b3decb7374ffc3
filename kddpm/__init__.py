"""Denoising diffusion probabilistic models (Ho et al. 2020) for Keras, with generation on the device."""

import importlib
import sys

__version__ = "0.1.0"

_HOMES = {
    "Ancestral": "samplers",
    "BitsPerDim": "likelihood",
    "DDIM": "samplers",
    "DPMSolver": "samplers",
    "DiffusionModel": "model",
    "GaussianDiffusion": "process",
    "Heun": "samplers",
    "InputError": "errors",
    "NoiseSchedule": "schedules",
    "PredictorCorrector": "samplers",
    "TrainConfig": "presets",
    "UNet": "unet",
    "load_run": "checkpoints",
    "train": "training",
}
_ROOMS = (
    "data",
    "editing",
    "generation",
    "images",
    "layers",
    "likelihood",
    "noise",
    "objectives",
    "parametrization",
    "plots",
    "presets",
    "process",
    "samplers",
    "schedules",
    "toy",
    "training",
    "walks",
)


def __getattr__(name):
    """Import a room when it is first used, so that `--help` and `--dry_run` need no TensorFlow."""
    if name in _ROOMS:
        return importlib.import_module(f"kddpm.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"kddpm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kddpm' has no attribute {name!r}")


def __dir__():
    """Everything public, whether it has been imported yet or not."""
    return sorted([*globals(), *_HOMES, *_ROOMS])


if "keras" in sys.modules:  # keras.models.load_model finds classes by registration, and importing them registers them
    importlib.import_module("kddpm.model")
    importlib.import_module("kddpm.unet")
