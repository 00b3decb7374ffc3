"""Packages that a plain install leaves out, by the extra that brings them: `pip install kddpm[export]`."""

import importlib.util
import sys

from kddpm.base.errors import InputError

# {extra: {module: what the package index calls it}}
EXTRAS = {
    "tfds": {"tensorflow_datasets": "tensorflow-datasets", "importlib_resources": "importlib_resources"},
    "export": {
        "ai_edge_litert": "ai-edge-litert",
        "ai_edge_quantizer": "ai-edge-quantizer",
        "flatbuffers": "flatbuffers",
    },
    "plots": {"matplotlib": "matplotlib"},
}


def missing(extra: str) -> str | None:
    """What to do to have an extra, such as "needs matplotlib: pip install kddpm[plots]"; None = it is there."""
    for module, package in EXTRAS[extra].items():
        if not _is_there(module):
            return f"needs {package}: pip install kddpm[{extra}]"
    return None


def need(extra: str, what: str, **values: str) -> None:
    """Whether an extra is there.

    Args:
        extra: a key of `EXTRAS`.
        what: needs it; arguments stand in braces, as in an `InputError`: "{format}".
        **values: those arguments' values.

    Raises:
        InputError: it is not.
    """
    if (text := missing(extra)) is not None:
        raise InputError(f"{what} {text}", **values)


def _is_there(module: str) -> bool:
    """Whether a module can be imported, without the seconds that importing it takes."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
