"""Data that one can look at whole: points in the plane, Gaussians in closed form. Uses `model` and the wings above it.

Begin with `planes`; `gaussians` needs no training, `vae` goes from the VAE to diffusion, and `estimators` compares
three ways to the bound. `mixtures` have a score at every noise level, `langevin` walks on them, and `two_points`
measures one step of the way back.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
