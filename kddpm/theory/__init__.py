"""The equations of DDPM without weights, in the order of docs/theory.md. Uses `base`.

Begin with `schedules`, then `process` (q and what follows from it), `parametrization` (what a network predicts, with
which weight and variance) and `objectives` (losses and the variational bound).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["objectives", "parametrization", "process", "schedules"])
