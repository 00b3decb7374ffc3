"""The equations of DDPM, without networks, in the order of docs/theory.md. Uses `base`.

Begin with `schedules`, then `process` (q and what follows from it), `parametrization` (what a network predicts,
and the loss weight and variance that go with it) and `objectives` (losses and the variational bound). `timesteps` says
how often each t is drawn, `linear_denoiser` what loss a network has to beat, `learned` trains a schedule for a given
denoiser, `sde` has continuous time, and `power_averages` averages weights over a length that is chosen after training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        "learned",
        "linear_denoiser",
        "objectives",
        "parametrization",
        "power_averages",
        "process",
        "schedules",
        "sde",
        "timesteps",
    ],
)
