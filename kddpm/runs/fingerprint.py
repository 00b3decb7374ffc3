"""What the bits of a training step depend on besides weights, data and seed: versions, devices, threads.

Sums of floats depend on their order, which changes with the number of threads, the library or XLA. A run that resumes
in other circumstances is as good as before, but no longer the same to the bit.
"""

import os
import platform

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import settings
from kddpm.base.version import __version__


def of_this_process(jit_compile: bool, replicas: int = 1) -> dict:
    """Return the circumstances of training in this process, as JSON values.

    Args:
        jit_compile: whether the training step is compiled with XLA.
        replicas: number of replicas that share a batch.
    """
    kinds = {device.device_type for device in tf.config.list_logical_devices()} - {"CPU"}
    return {
        "kddpm": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "devices": sorted(kinds) or ["CPU"],
        "cores": settings.cores(),
        "threads": [
            tf.config.threading.get_intra_op_parallelism_threads() or _number("TF_NUM_INTRAOP_THREADS"),
            tf.config.threading.get_inter_op_parallelism_threads() or _number("TF_NUM_INTEROP_THREADS"),
        ],
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1"),
        "jit_compile": bool(jit_compile),
        "replicas": int(replicas),
        **{name.lower(): os.environ[name] for name in ("XLA_FLAGS", "TF_XLA_FLAGS") if os.environ.get(name)},
    }


def _number(variable):
    """Return the number in a variable of the environment, 0 without one."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def differences(before: dict, now: dict) -> list[str]:
    """Return one phrase for each circumstance that changed."""
    names = sorted(set(before) | set(now))
    return [
        f"{name} was {before.get(name)}, now {now.get(name)}" for name in names if before.get(name) != now.get(name)
    ]
