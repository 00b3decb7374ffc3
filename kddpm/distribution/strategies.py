"""Choice of the `tf.distribute` strategy: one device, the replicas of one machine, several machines, a TPU.

Replicas share every batch. Workers are processes, one a machine, each with its own replicas; only the first one, the
chief, writes files. All workers call the same functions in the same order, with the same arguments.
"""

import contextlib
import json
import os
import re
import signal
import threading

import tensorflow as tf

from kddpm.base.errors import InputError, first_line
from kddpm.distribution import STRATEGIES, cores

_MINUTES_FOR_ALL = 15
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


def make(strategy: str, cpu_replicas: int = 1, rows: int = 1) -> tf.distribute.Strategy:
    """Make a strategy by its name, before anything else in TensorFlow is initialised.

    Args:
        strategy: "one" device; "mirrored", all GPUs of this machine; "multi_worker", the machines of TF_CONFIG; "tpu";
            or "auto", the largest that is available.
        cpu_replicas: number of replicas that "mirrored" makes of the CPU, to try several replicas without GPUs.
        rows: of a batch; with "one" they decide whether the cores of a CPU share batches (`cores.divide_batches`).

    Raises:
        InputError: unknown name, missing devices, missing or wrong TF_CONFIG.
    """
    if strategy not in STRATEGIES:
        raise InputError("strategy", f"must be one of {', '.join(STRATEGIES)}", repr(strategy))
    if strategy == "auto":
        strategy = _largest(cpu_replicas)
    if cpu_replicas > 1 and strategy != "mirrored":
        raise InputError("cpu_replicas", "needs {strategy}", strategy, strategy="mirrored")
    if strategy == "one":
        cores.divide_batches(rows)
    return _MAKERS[strategy](cpu_replicas)


def check_compiled(strategy: tf.distribute.Strategy, jit_compile: bool, steps_per_execution: int) -> None:
    """Check that a strategy supports these arguments of a model's `compile`.

    Raises:
        InputError: it does not; the message says why.
    """
    replicas = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.TPUStrategy):
        if jit_compile:
            raise InputError("jit_compile", "must be False on a TPU, which compiles all that it runs", "True")
        return
    if replicas == 1:
        return
    if jit_compile:
        raise InputError(
            "jit_compile", f"must be False with {replicas} replicas, whose gradients meet where XLA cannot", "True"
        )
    if steps_per_execution > 1:
        raise InputError(
            "steps_per_execution",
            f"must be 1 with {replicas} replicas, which cannot meet within a loop",
            steps_per_execution,
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
            raise InputError("cpu_replicas", "is for machines without GPUs", ", ".join(gpus))
        part = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [part] * cpu_replicas)
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(cpu_replicas)])
    if len(gpus) < 2:
        raise InputError(
            "{strategy} needs two GPUs or more, or {cpu_replicas} to try it",
            received=f"{len(gpus)} GPUs",
            strategy="mirrored",
            cpu_replicas=...,
        )
    return tf.distribute.MirroredStrategy(gpus)


def _multi_worker(cpu_replicas):
    if not (workers := _workers_of_environment()):
        raise InputError(
            f"{{strategy}} needs TF_CONFIG in the environment, such as {_EXAMPLE}", strategy="multi_worker"
        )
    try:
        with _waiting_for(workers):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        text = f"{{strategy}} needs the workers of TF_CONFIG, {', '.join(workers)}"
        raise InputError(text, received=first_line(error), strategy="multi_worker") from None


@contextlib.contextmanager
def _waiting_for(workers):
    """Let Ctrl-C and a time limit end the process while TensorFlow waits for all workers, deaf to Python's signals."""
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
        raise InputError("{strategy} needs a TPU on this machine", received=first_line(error), strategy="tpu") from None


_MAKERS = {"one": _one, "mirrored": _mirrored, "multi_worker": _multi_worker, "tpu": _tpu}


def _workers_of_environment() -> list[str]:
    """Return the worker addresses in TF_CONFIG, [] without one."""
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
            f"TF_CONFIG must look like {_EXAMPLE}, a chief being worker 0; {{strategy}} does without it",
            received=text,
            strategy="one",
        ) from None
