"""`DiffusionModel`, the Keras model that trains and generates. May use every wing above.

Begin with `diffusion_model`: `train_step` reads as Algorithm 1 of Ho et al. 2020.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["checks", "diffusion_model", "draws", "gradients", "means", "network_state"],
    {"diffusion_model": ["DiffusionModel"]},
)
