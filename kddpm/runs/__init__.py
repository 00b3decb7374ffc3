"""Training runs in directories: configuration, checkpoints, training, evaluation. May use every wing above.

Begin with `training`, and with `directory` for the files of a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        "bits",
        "build",
        "callbacks",
        "checkpoints",
        "config",
        "directory",
        "evaluate",
        "fingerprint",
        "generators",
        "judging",
        "monitoring",
        "pieces",
        "presets",
        "quality",
        "results",
        "snapshots",
        "training",
        "weights_files",
    ],
)
