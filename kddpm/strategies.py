"""Where a model lives: on one device, on the replicas of one machine, on several machines, on a TPU.

A strategy is `tf.distribute`'s. Replicas share every batch; workers are processes, one a machine, each with replicas of
its own, and the first of them, the chief, is the one that writes. All of them call the same functions in the same
order, with the same arguments.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.errors import InputError, WorkerLostError, first_line

_MINUTES_FOR_ALL = 15
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


def make(name: str, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """A strategy by its name; to be made before anything else of TensorFlow is.

    Args:
        name: "one" device; "mirrored", all GPUs of this machine; "multi_worker", the machines of TF_CONFIG; "tpu"; or
            "auto", the largest of those that there is.
        cpu_replicas: how many replicas "mirrored" makes of the CPU, to try without GPUs what several do.

    Raises:
        InputError: an unknown name, devices that are not there, a TF_CONFIG that is missing or wrong.
    """
    if name not in NAMES:
        raise InputError(f"--strategy must be one of {', '.join(NAMES)}. Received: {name!r}")
    if name == "auto":
        name = _largest(cpu_replicas)
    if cpu_replicas > 1 and name != "mirrored":
        raise InputError(f"--cpu_replicas needs --strategy=mirrored. Received: --strategy={name}")
    return _MAKERS[name](cpu_replicas)


def check_compiled(strategy: tf.distribute.Strategy, jit_compile: bool, steps_per_execution: int) -> None:
    """Whether a strategy can do what a model's `compile` was asked for.

    Raises:
        InputError: it cannot, with the reason.
    """
    replicas = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.TPUStrategy):
        if jit_compile:
            raise InputError("`jit_compile` must be False on a TPU, which compiles all that it runs. Received: True")
        return
    if replicas == 1:
        return
    if jit_compile:
        raise InputError(
            f"`jit_compile` must be False with {replicas} replicas, whose gradients meet where XLA cannot. "
            "Received: True"
        )
    if steps_per_execution > 1:
        raise InputError(
            f"`steps_per_execution` must be 1 with {replicas} replicas, which cannot meet within a loop. "
            f"Received: {steps_per_execution}"
        )


def _largest(cpu_replicas: int) -> str:
    if len(_workers_of_environment()) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if cpu_replicas > 1 or len(tf.config.list_physical_devices("GPU")) > 1 else "one"


def _one(cpu_replicas):
    return tf.distribute.get_strategy()


def _mirrored(cpu_replicas):
    gpus = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices("GPU")]
    if cpu_replicas > 1:
        if gpus:
            raise InputError(f"--cpu_replicas is for machines without GPUs. Received: {', '.join(gpus)}")
        part = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [part] * cpu_replicas)
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(cpu_replicas)])
    if len(gpus) < 2:
        raise InputError(
            f"--strategy=mirrored needs two GPUs or more, or --cpu_replicas to try it. Received: {len(gpus)} GPUs"
        )
    return tf.distribute.MirroredStrategy(gpus)


def _multi_worker(cpu_replicas):
    if not (workers := _workers_of_environment()):
        raise InputError(f"--strategy=multi_worker needs TF_CONFIG in the environment, such as {_EXAMPLE}")
    try:
        with _waiting_for(workers):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        text = f"--strategy=multi_worker needs the workers of TF_CONFIG, {', '.join(workers)}. Received: "
        raise InputError(text + first_line(error)) from None


@contextlib.contextmanager
def _waiting_for(workers):
    """Within it TensorFlow waits for all workers, deaf to Python's signals: Ctrl-C ends it all the same, or a limit."""
    if len(workers) > 1:
        print(f"Waiting for {', '.join(workers)}, up to {_MINUTES_FOR_ALL} minutes ...", flush=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGINT, signal.SIGALRM)]
    signal.alarm(60 * _MINUTES_FOR_ALL)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before:
            signal.signal(number, handler)


def _tpu(cpu_replicas):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", "local"))
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise InputError(f"--strategy=tpu needs a TPU on this machine. Received: {first_line(error)}") from None


_MAKERS = {"one": _one, "mirrored": _mirrored, "multi_worker": _multi_worker, "tpu": _tpu}
NAMES = ("auto", *_MAKERS)


def _workers_of_environment() -> list[str]:
    """The addresses that TF_CONFIG names, [] without one."""
    if not (text := os.environ.get("TF_CONFIG")):
        return []
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        sound = all(re.fullmatch(r"[^\s/]+:\d+", worker) for worker in workers) and len(set(workers)) == len(workers)
        if not sound or set(config["cluster"]) != {"worker"} or task["type"] != "worker":
            raise ValueError
        if type(task["index"]) is not int or not 0 <= task["index"] < len(workers):
            raise ValueError
        return workers
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"TF_CONFIG must look like {_EXAMPLE}, a chief being worker 0; --strategy=one does without it. "
            f"Received: {text}"
        ) from None


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes share the work."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return max(1, len(cluster.get("chief", [])) + len(cluster.get("worker", [])))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes and speaks."""
    if num_workers(strategy) == 1:
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def describe(strategy: tf.distribute.Strategy) -> str:
    """A few words for people, "" for one device."""
    replicas, workers = strategy.num_replicas_in_sync, num_workers(strategy)
    if workers > 1:
        return f"Worker {strategy.cluster_resolver.task_id} of {workers}, {replicas} replicas in all"
    return f"{replicas} replicas" if replicas > 1 else ""


def total(strategy: tf.distribute.Strategy, number: int) -> int:
    """The sum of what each worker says."""
    if num_workers(strategy) == 1:
        return number
    mine = strategy.num_replicas_in_sync // num_workers(strategy)
    return round(float(_summed(strategy, np.float32(number)))) // mine


def _summed(strategy, own: np.ndarray) -> np.ndarray:
    """Over all replicas, in float32, which is exact up to 2^24."""
    each = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(own))
    return strategy.reduce("SUM", each, axis=None).numpy()


@contextlib.contextmanager
def all_or_none(strategy: tf.distribute.Strategy):
    """What ends one worker within it ends all of them there: its own error, or one that says to look at the others.

    Raises:
        InputError: another worker met one.
    """
    try:
        yield
    except (InputError, OSError):
        with contextlib.suppress(tf.errors.OpError):  # of those that are gone already
            total(strategy, 1)
        raise
    if failed := total(strategy, 0):
        text = "worker" if failed == 1 else "workers"
        raise InputError(f"{failed} other {text} of {num_workers(strategy)} cannot go on, and said why")


def check_alike(strategy: tf.distribute.Strategy, what: str, value: str) -> None:
    """Whether all workers were given the same.

    Raises:
        InputError: they were not; all of them raise it.
    """
    if num_workers(strategy) == 1:
        return
    # As numbers whose sums float32 holds exactly: all are alike where everybody's own is the mean.
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
def using(strategy: tf.distribute.Strategy):
    """The strategy's scope, in which the loss of a worker is one line.

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
    """Who, as far as the error says; where it says so, it names this worker too."""
    found = {int(task) for task in re.findall(r"/job:worker/replica:0/task:(\d+)", str(error))}
    others = sorted(found - {strategy.cluster_resolver.task_id})
    return f"worker {others[0]} does not answer" if others else "it does not answer"


class Rows:
    """Work on the rows of arrays, each of which is some replica's.

    Args:
        strategy: of the model whose variables are asked.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync

    def compile(self, function: Callable, **kwargs) -> Callable:
        """As a `tf.function` that each replica calls, with the rows that are `share`d with it and with all else."""
        one = tf.function(function, autograph=False, **kwargs)
        if self.replicas == 1:
            return one
        # A `tf.function` itself would be taken apart by `run`, and XLA asked to compile all replicas as one.
        return tf.function(lambda *args: self._strategy.run(lambda *mine: one(*mine), args), autograph=False)

    def share(self, array: np.ndarray | None):
        """An array (B, ...), B a multiple of the replicas, for `compile`d functions; None goes through."""
        if array is None or self.replicas == 1:
            return None if array is None else tf.constant(array)
        size = len(array) // self.replicas

        def mine(context):
            first = context.replica_id_in_sync_group * size
            return tf.constant(array[first : first + size])

        return self._strategy.experimental_distribute_values_from_function(mine)

    def join(self, value):
        """The rows of all replicas, (B, ...)."""
        return value if self.replicas == 1 else self._strategy.gather(value, axis=0)
