"""Generates pictures from noise, and pictures from pictures. Uses `base`, `theory`, `data` and `distribution`.

Begin with `samplers`, whose docstring has the equations: every sampler becomes a `step_table.StepTable`, and `walks`
runs its steps inside the graph. `denoiser` is the interface to a network; users call `generation` and `editing`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["denoiser", "editing", "generation", "inversion", "noise", "samplers", "step_table", "walks"]
)
