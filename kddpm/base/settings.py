"""Checks of Keras's settings before anything is built on them: the backend and the types of numbers."""

import contextlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kddpm.base.errors import InputError

if TYPE_CHECKING:
    import keras

_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def backend() -> tuple[str, str]:
    """Return the name of Keras's backend, and where it is set; Keras is not imported for that."""
    if chosen := os.environ.get("KERAS_BACKEND"):
        found = chosen, "by KERAS_BACKEND"
    else:
        found = _in_file("backend", "tensorflow")
    running = getattr(sys.modules.get("keras"), "config", None)
    return (running.backend(), found[1]) if running else found


def check_backend() -> None:
    """Check that Keras runs on TensorFlow, as everything that trains and generates needs.

    Raises:
        InputError: it has, or will have, another backend.
    """
    name, where = backend()
    if name != "tensorflow":
        raise InputError(
            "Keras must run on TensorFlow: set KERAS_BACKEND=tensorflow before Keras is imported. "
            f"Received: the backend {name}, set {where}"
        )


def check_floatx() -> None:
    """Check that the type of Keras's numbers is float32, which losses, averages and samplers are computed in.

    Raises:
        InputError: it is, or will be, another type.
    """
    running = getattr(sys.modules.get("keras"), "config", None)
    floatx, where = (running.floatx(), "") if running else _in_file("floatx", "float32")
    if floatx != "float32":
        raise InputError(
            'Keras\'s floatx must be float32: call keras.config.set_floatx("float32") first. '
            f"Received: {floatx}{where and f', set {where}'}"
        )


def _in_file(key: str, default: str) -> tuple[str, str]:
    """Return a setting of Keras's configuration file, and where it is set."""
    path = pathlib.Path(os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")) / "keras.json"
    try:
        found = json.loads(path.read_text())
        return (str(found[key]), f"in {path}") if key in found else (default, "by default")
    except (OSError, ValueError, TypeError):  # no such file, or none that Keras can use
        return default, "by default"


@contextlib.contextmanager
def keras_defaults() -> Iterator[None]:
    """Build layers within the block as Keras does where nobody chose otherwise: in float32, with the channels last."""
    import keras

    layout, policy = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_image_data_format(layout)
        keras.config.set_dtype_policy(policy)


def cores() -> int:
    """Return the number of cores on which this process may run; a container's quota is not seen."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lacks_bfloat16() -> bool:
    """Return whether this processor is known to have no bfloat16 arithmetic (AVX512_BF16 or AMX); else False.

    Without it convolutions in bfloat16 take several times as long as in float32.
    """
    if platform.machine() != "x86_64":
        return False
    try:
        features = pathlib.Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:  # not Linux
        return False
    return bool(features) and not {"avx512_bf16", "amx_bf16"} & set(features)


def check_policy(policy: "keras.DTypePolicy") -> None:
    """Check that the weights of a network are float32, and its arithmetic is, too, or mixed.

    Raises:
        InputError: another policy, such as bfloat16, in which small updates of weights are rounded away.
    """
    if policy.name not in _POLICIES:
        raise InputError(
            "dtype",
            f"must be {', '.join(_POLICIES[:-1])} or {_POLICIES[-1]}, whose weights are float32; "
            "without it keras.config.dtype_policy() holds",
            policy.name,
        )
