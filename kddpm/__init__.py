"""Denoising diffusion probabilistic models (Ho et al. 2020) for Keras, with generation on the device."""

__version__ = "0.1.0"
