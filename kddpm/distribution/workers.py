"""Communication of workers: processes that train together, one a machine; the first one, the chief, writes files.

All workers call the same functions in the same order, with the same arguments.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError, WorkerLostError


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Return the number of processes that share the work."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return max(1, len(cluster.get("chief", [])) + len(cluster.get("worker", [])))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the chief, which writes files and prints."""
    if num_workers(strategy) == 1:
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def describe(strategy: tf.distribute.Strategy) -> str:
    """Return a short description to print, "" for one device."""
    replicas, workers = strategy.num_replicas_in_sync, num_workers(strategy)
    if workers > 1:
        return f"Worker {strategy.cluster_resolver.task_id} of {workers}, {replicas} replicas in all"
    return f"{replicas} replicas" if replicas > 1 else ""


def total(strategy: tf.distribute.Strategy, number: int) -> int:
    """Return the sum of `number` over all workers."""
    if num_workers(strategy) == 1:
        return number
    mine = strategy.num_replicas_in_sync // num_workers(strategy)
    return round(float(_summed(strategy, np.float32(number)))) // mine


def _summed(strategy, own: np.ndarray | np.float32) -> np.ndarray:
    """Return the sum over all replicas (all-reduce), in float32, which is exact up to 2^24."""
    each = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(own))
    return strategy.reduce("SUM", each, axis=None).numpy()


@contextlib.contextmanager
def all_or_none(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Make all workers fail at the end of the block if one failed in it, the others with an error that points there.

    Raises:
        InputError: another worker raised an InputError or OSError.
    """
    try:
        yield
    except (InputError, OSError):
        with contextlib.suppress(tf.errors.OpError):  # other workers may be gone already
            total(strategy, 1)
        raise
    if failed := total(strategy, 0):
        text = "worker" if failed == 1 else "workers"
        raise InputError(f"{failed} other {text} of {num_workers(strategy)} cannot go on, and said why")


def check_same(strategy: tf.distribute.Strategy, what: str, value: str) -> None:
    """Check that all workers were given the same value.

    Raises:
        InputError: the values differ; raised on all workers.
    """
    if num_workers(strategy) == 1:
        return
    # The digest as numbers whose sums are exact in float32: all values are equal if every worker's own is the mean.
    own = np.frombuffer(hashlib.sha256(value.encode(errors="replace")).digest(), np.uint16).astype(np.float32)
    if not np.array_equal(_summed(strategy, own), own * strategy.num_replicas_in_sync):
        raise InputError(f"All workers must be given the same {what}. Received: different ones")


_OF_A_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


@contextlib.contextmanager
def using(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Enter the strategy's scope, and report the loss of a worker in one line.

    Raises:
        WorkerLostError: another worker ended, or cannot be reached.
    """
    try:
        with strategy.scope():
            yield
    except tf.errors.OpError as error:
        if num_workers(strategy) == 1 or not isinstance(error, _OF_A_LOST_WORKER):
            raise
        raise WorkerLostError(
            f"Another worker of the {num_workers(strategy)} was lost: {_lost(strategy, error)}. Start all of them "
            "again with the same command"
        ) from None


def _lost(strategy, error) -> str:
    """Return which worker was lost, if the error names it; it may name this worker too."""
    found = {int(task) for task in re.findall(r"/job:worker/replica:0/task:(\d+)", str(error))}
    others = sorted(found - {strategy.cluster_resolver.task_id})
    return f"worker {others[0]} does not answer" if others else "it does not answer"
