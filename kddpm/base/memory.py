"""Memory used by this process and installed in this machine, in bytes."""

import sys
import threading
import types

import psutil

resource: types.ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_SECONDS = 0.01  # between two measurements


def peak() -> int:
    """Return the peak resident memory of this process so far; on Linux never less than its parent had at the start."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total() -> int:
    """Return the memory installed in this machine."""
    return psutil.virtual_memory().total


class Gain:
    """Measures by how much the process's memory rises at most while a block runs, sampled a hundred times a second.

    Example:
        >>> with Gain() as gain:
        ...     work()
        >>> gain.bytes
    """

    def __init__(self):
        self.bytes = 0
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._start = self._process.memory_info().rss
        self._watcher.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        self._watcher.join()

    def _watch(self):
        ended = False
        while not ended:
            ended = self._ended.wait(_SECONDS)
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._start)
