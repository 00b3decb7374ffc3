"""Training runs in directories: configuration, checkpoints, training, evaluation. May use every wing above.

Begin with `training`, and with `directory` for the files of a run; `evaluate` measures one, `doctor` finds its faults.
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
        "data_findings",
        "directory",
        "doctor",
        "evaluate",
        "findings",
        "fingerprint",
        "generators",
        "judging",
        "monitoring",
        "network_examination",
        "network_findings",
        "pieces",
        "presets",
        "probes",
        "quality",
        "results",
        "snapshots",
        "training",
        "weights_files",
    ],
)
