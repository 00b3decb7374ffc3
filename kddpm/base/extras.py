"""Optional packages, grouped by the extra that installs them: `pip install kddpm[export]`."""

import importlib.util
import sys

from kddpm.base.errors import InputError

# {extra: {module: its name on the package index}}
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
    """Return how to install an extra, such as "needs matplotlib: pip install kddpm[plots]"; None = it is installed."""
    for module, package in EXTRAS[extra].items():
        if not _is_there(module):
            return f"needs {package}: pip install kddpm[{extra}]"
    return None


def need(extra: str, what: str, **values: str) -> None:
    """Check that an extra is installed.

    Args:
        extra: a key of `EXTRAS`.
        what: what needs it; arguments are named in braces, as in an `InputError`: "{format}".
        **values: the values of those arguments.

    Raises:
        InputError: the extra is not installed.
    """
    if (text := missing(extra)) is not None:
        raise InputError(f"{what} {text}", **values)


def _is_there(module: str) -> bool:
    """Return whether a module can be imported, without spending the seconds to import it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
