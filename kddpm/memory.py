"""The memory that this process holds, and the machine has, in bytes, as Linux tells it; None on other systems."""

import os
import pathlib
import re

_PROCESS = pathlib.Path("/proc/self")
_earlier_peak = 0  # of before the system was told to forget it


def peak() -> int | None:
    """The most that this process has held."""
    now = _read("VmHWM")
    return None if now is None else max(now, _earlier_peak)


def total() -> int | None:
    """What this machine has in all."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


class Gain:
    """How much more the process comes to hold, at most, from when this is made."""

    def __init__(self):
        global _earlier_peak
        self._start = _read("VmRSS")
        if self._start is not None:
            _earlier_peak = peak()
            try:
                (_PROCESS / "clear_refs").write_text("5")  # the peak begins anew at what is held now
            except OSError:
                self._start = None

    def peak(self) -> int | None:
        """So far."""
        return None if self._start is None else max(_read("VmHWM") - self._start, 0)


def _read(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
