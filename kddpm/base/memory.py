"""The memory that this process holds, and the machine has, in bytes."""

import sys
import threading
import types

import psutil

resource: types.ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_SECONDS = 0.01  # between two looks


def peak() -> int:
    """The most that this process has held so far; on Linux at least what its parent held when it started this one."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total() -> int:
    """What this machine has in all."""
    return psutil.virtual_memory().total


class Gain:
    """How much more the process comes to hold, at most, while a block runs; looked at a hundred times a second.

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
