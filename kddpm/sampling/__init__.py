"""From noise to pictures, and from pictures to pictures. Uses `base`, `theory`, `data` and `distribution`.

Begin with `samplers`, whose docstring has the equations: every sampler is a `step_table.StepTable`, which `walks` takes
step by step inside the graph. `denoiser` is what all of it knows of a network, `generation` and `editing` are what a
user calls.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["denoiser", "editing", "generation", "noise", "samplers", "step_table", "walks"]
)
