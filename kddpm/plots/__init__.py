"""Figures of the theory and of a run.

    python -m kddpm.plots                                             # all figures of the theory, into docs/figures
    python -m kddpm.plots --only=schedules,forward --out=figures

Begin with `theory`; `chains` goes from the VAE to diffusion, `processes` draws single steps and continuous time,
`pictures` how a picture comes about, `bits` what it costs to code, and `runs` the loss curve, the bits and the health
of a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
