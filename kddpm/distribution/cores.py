"""Cores of a CPU: as many parts of a batch at a time as there are cores, each computed by one thread.

TensorFlow by default shares every operation among all cores, and the operations of small networks are too short for
that. On two cores a training step of the preset `digits` takes 34 ms in two parts, and 59 ms in one.
"""

import os

import tensorflow as tf

_LEAST_ROWS = 4  # of a part; with fewer, an operation takes longer than it has to
_MOST_CORES = 16  # more were not measured


def available() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divide_batches(rows: int) -> None:
    """Let TensorFlow give each operation one thread where batches of this many rows can keep all cores busy.

    Nothing changes on an accelerator, on more cores than were measured, where the number of threads has been set, by
    TF_NUM_INTRAOP_THREADS too, and once TensorFlow has been initialised.
    """
    threading, count = tf.config.threading, available()
    is_set = threading.get_intra_op_parallelism_threads() or os.environ.get("TF_NUM_INTRAOP_THREADS")
    on_cpu = all(device.device_type == "CPU" for device in tf.config.list_physical_devices())
    if is_set or not on_cpu or not 1 < count <= min(_MOST_CORES, rows // _LEAST_ROWS):
        return
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(count)
    except RuntimeError:  # it has been initialised
        pass


def are_divided(strategy: tf.distribute.Strategy) -> bool:
    """Return whether batches are computed in parts: each operation has one thread, and there are no replicas."""
    return strategy.num_replicas_in_sync == 1 and tf.config.threading.get_intra_op_parallelism_threads() == 1


def most_parts(rows: int, strategy: tf.distribute.Strategy) -> int:
    """Return in how many parts a batch of about this many rows is computed at the same time."""
    return max(1, min(available(), rows // _LEAST_ROWS)) if are_divided(strategy) else 1


def equal_parts(rows: int, strategy: tf.distribute.Strategy) -> int:
    """Return the same for parts of exactly one size."""
    return next(parts for parts in range(most_parts(rows, strategy), 0, -1) if rows % parts == 0)
