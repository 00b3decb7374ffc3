"""Cores of a CPU that share a batch: as many parts of it at a time as there are cores, each computed by one thread.

TensorFlow by default shares every operation among all cores, and the operations of small networks are too short for
that. On two cores a training step of the preset `digits` takes 34 ms in two parts, and 59 ms in one.
`divide_batches` gives each operation one thread; from there on training and `replicas.SharedRows` take as many parts of
a batch at a time. Each part of a training batch has gradients of all weights of its own.
"""

import os

import tensorflow as tf

from kddpm.base import settings

_LEAST_ROWS = 4  # of each part, or operations keep all their threads
_MOST_PARTS = 8  # two were measured; more than that would hold many gradients, of few images each


def divide_batches(rows: int) -> None:
    """Let TensorFlow give each operation one thread, where batches of this many rows can keep all cores busy.

    Nothing changes on an accelerator, on many cores, where a number of threads has been set, by TF_NUM_INTRAOP_THREADS
    and TF_NUM_INTEROP_THREADS too, and once TensorFlow has been initialised.
    """
    threading, count = tf.config.threading, settings.cores()
    is_set = any(os.environ.get(name) for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"))
    is_set |= bool(threading.get_intra_op_parallelism_threads() or threading.get_inter_op_parallelism_threads())
    if is_set or not _is_on_cpu() or not 1 < count <= min(_MOST_PARTS, rows // _LEAST_ROWS):
        return
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(count)
    except RuntimeError:  # it has been initialised
        pass


def _is_on_cpu():
    return all(device.device_type == "CPU" for device in tf.config.get_visible_devices())


def are_divided(strategy: tf.distribute.Strategy) -> bool:
    """Return whether batches are computed in parts: a CPU, no replicas, one thread an operation, several operations."""
    threading = tf.config.threading
    has_threads = threading.get_intra_op_parallelism_threads() == 1 < threading.get_inter_op_parallelism_threads()
    return has_threads and strategy.num_replicas_in_sync == 1 and _is_on_cpu()


def most_parts(rows: int, strategy: tf.distribute.Strategy) -> int:
    """Return in how many parts a batch of this many rows is computed at the same time.

    A part may have one row: operations have one thread each then, and the others would have nothing to do.
    """
    if not are_divided(strategy):
        return 1
    count = tf.config.threading.get_inter_op_parallelism_threads()
    return max(1, min(count, _MOST_PARTS, rows))


def equal_parts(rows: int, strategy: tf.distribute.Strategy) -> int:
    """Return the same for parts of one size."""
    return next(parts for parts in range(most_parts(rows, strategy), 0, -1) if rows % parts == 0)
