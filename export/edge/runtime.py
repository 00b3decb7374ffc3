"""The runtime of .tflite files that is installed, and whether it is new enough."""

from __future__ import annotations

import importlib
import pathlib
import re

import numpy as np

from .description import InputError

# The versions of TensorFlow Lite that ai-edge-litert 1.0 and 2.0 begin with.
_LITERT_1, _LITERT_2 = [2, 17, 0], [2, 21, 0]
_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")


def load(path: pathlib.Path, threads: int, xnnpack: bool, needed: str):
    """Return the runtime's name and the interpreter of a .tflite that needs TensorFlow Lite `needed`, as "2.13.0".

    The file is mapped into memory, not read: XNNPACK keeps its own copy of the weights.

    Raises:
        InputError: no runtime is installed, or one that is older, or one that was built for another NumPy.
        ValueError, RuntimeError: the runtime's own, of a file that it cannot load.
    """
    name, interpreter = _runtime()
    version = getattr(importlib.import_module(name), "__version__", "of an unknown version")
    runtime = f"{name.replace('_', '-')} {version}"
    found, other = _numbers_of(version), ", or ai-edge-litert of any version"
    if name == "ai_edge_litert":
        found, other = _LITERT_1 if found < [2] else _LITERT_2, ""
    if found < _numbers_of(needed):
        raise InputError(f"needs TensorFlow Lite {needed} or newer{other}. Received: {runtime}")
    options = {} if xnnpack else {"experimental_op_resolver_type": _without_delegates(interpreter)}
    try:
        try:
            loaded = interpreter.Interpreter(model_path=str(path), num_threads=threads, **options)
        except (AttributeError, TypeError):  # ai-edge-litert 1.1.0 fails where it is told of threads
            loaded = interpreter.Interpreter(model_path=str(path), **options)
    except SystemError:
        raise InputError(
            f"needs a NumPy that {runtime} was built for: pip install 'numpy<2'. Received: NumPy {np.__version__}"
        ) from None
    return runtime, loaded


def _runtime():
    """Import the first runtime that there is; return the name of its package, and its interpreter module."""
    reasons = []
    for module in _RUNTIMES:
        try:
            return module.split(".")[0], importlib.import_module(module)
        except Exception as error:  # one built for another NumPy raises what it likes
            if not isinstance(error, ModuleNotFoundError):
                reasons.append(f"{module} cannot be imported: {error!r:.200}")
    raise InputError(
        "needs a runtime: pip install ai-edge-litert, or on boards that have no wheel of it "
        f"pip install tflite-runtime 'numpy<2'. Received: {'; '.join(reasons) or 'none of them'}"
    )


def _without_delegates(interpreter):
    try:
        return interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    except AttributeError:
        raise InputError("cannot be run with --no-xnnpack: the installed runtime has no such choice") from None


def _numbers_of(version: str) -> list[int]:
    """Return the first three numbers of a version, which later ones may follow: 2.14.0rc1, 2.14.0.dev2023."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
