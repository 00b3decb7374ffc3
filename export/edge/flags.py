"""What flags say: numbers, paths, and errors in one line; and lines in words."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import signal
import sys
import tempfile

from .description import InputError, expanded

MOST_NUMBERS = 100_000  # of one flag
MOST_THREADS = 256  # LiteRT itself sets no limit
_INT32 = range(-(2**31), 2**31)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """End with the line."""
        sys.exit(f"{self.prog}: {message}")


@contextlib.contextmanager
def ending_in_a_line(program: str):
    """End the program in one line where the block meets an error of the user's, or Ctrl-C, which has status 130."""
    try:
        yield
    except (InputError, OSError, MemoryError) as error:
        fault = str(error) if str(error) else type(error).__name__
        sys.exit(f"{program}: {' '.join(fault.splitlines())}")
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of somebody who presses it twice
        begun = "\n" if sys.stderr.isatty() else ""  # a line of progress
        print(f"{begun}{program}: interrupted; {str(interrupt) or 'nothing written'}", file=sys.stderr)
        sys.exit(130)


def numbers(flag: str, text: str) -> list[int]:
    """Return numbers such as "0-15", "7" or "1,5,10-20"; a range includes both ends.

    Raises:
        InputError: anything else, numbers that do not fit int32, or more than `MOST_NUMBERS`.
    """
    ranges, total = [], 0
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?[0-9]{1,12})(?:-(-?[0-9]{1,12}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first:
            raise InputError(f"{flag} must look like 0-15 or 1,5,10-20. Received: {text!r:.100}")
        if first not in _INT32 or last not in _INT32:
            raise InputError(f"{flag} must fit int32, {_INT32[0]} to {_INT32[-1]}. Received: {part.strip()}")
        ranges.append(range(first, last + 1))
        total += last + 1 - first
    if total > MOST_NUMBERS:
        raise InputError(f"{flag} must be at most {MOST_NUMBERS} numbers in all. Received: {total}")
    return [number for one in ranges for number in one]


def integer(flag: str, text: str) -> int:
    """Return an integer in decimal digits.

    Raises:
        InputError: anything else.
    """
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise InputError(f"{flag} must be an integer of at most 9 digits. Received: {text!r:.100}")
    return int(text)


def decimal(flag: str, text: str) -> float:
    """Return a number such as "0.5", "1" or "1e-3".

    Raises:
        InputError: anything else.
    """
    if not re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]{1,3})?", text):
        raise InputError(f"{flag} must be a number such as 0.5. Received: {text!r:.100}")
    return float(text)


def threads(text: str) -> int:
    """Return the value of --threads.

    Raises:
        InputError: no integer in 1 .. `MOST_THREADS`.
    """
    number = integer("--threads", text)
    if not 1 <= number <= MOST_THREADS:
        raise InputError(f"--threads must lie in 1 .. {MOST_THREADS}. Received: {number}")
    return number


def path(flag: str, text: str) -> pathlib.Path:
    """Return a path, with the home folder in place of ~.

    Raises:
        InputError: an empty one.
    """
    if not text:
        raise InputError(f"{flag} must be a path. Received: ''")
    return expanded(text)


def output(text: str, or_folder: bool = True) -> pathlib.Path:
    """Return the value of --out, once it is known that it can be written.

    Args:
        text: the value.
        or_folder: whether it may be a folder instead of a .png file.

    Raises:
        InputError: it has another ending, is there as something else, or lies where nothing can be written.
    """
    out = path("--out", text)
    is_file = out.suffix == ".png"
    if not is_file and (out.suffix or not or_folder):
        raise InputError(f"--out must end in .png{', or be a folder' if or_folder else ''}. Received: {out}")
    if os.path.exists(out) and os.path.isdir(out) == is_file:
        expected = "a .png file, or a folder" if or_folder else "a .png file"
        raise InputError(f"--out must be {expected}. Received: {out}, which is there and is not")
    if os.path.islink(out) and not os.path.exists(out):
        raise InputError(f"--out must not be a link to nothing. Received: {out}")
    inside = out.absolute() if is_file else out.absolute() / "x"
    folder = next(parent for parent in inside.parents if os.path.lexists(parent))
    try:
        with contextlib.suppress(FileNotFoundError):
            out.lstat()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--out must be in a folder that can be written to. Received: {out} ({folder}: {error.strerror})"
        ) from None
    return out


def count(number: int, what: str) -> str:
    """Return "1 step", "2 steps"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
