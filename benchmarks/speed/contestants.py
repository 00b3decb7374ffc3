"""Programs that are measured. Each lives in a process of its own, with a Python of its own, and answers calls.

A call is a line of JSON, [method, arguments], and so is the answer. `Contestant` is the side that asks, `serve` the
side that answers; the second needs nothing but Python, as the two sides have different packages installed.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
_STARTED = "BENCH_STARTED"  # the environment variable that tells a process when it was started


class Failure(Exception):
    """A contestant could not do what it was asked to."""


class Contestant:
    """A process that runs a script of this folder.

    Args:
        name: what it is called in tables.
        python: its interpreter.
        script: a file of this folder that calls `serve`.
        cache: folder for what its compilers keep between runs; None = a new one, so that nothing is compiled yet.
    """

    def __init__(self, name, python, script, cache=None):
        self.name = name
        self._closing = contextlib.ExitStack()
        cache = cache or self._closing.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self._notes = self._closing.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "XDG_CACHE_HOME": str(cache)}
        self._process = subprocess.Popen(
            [python, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._notes, text=True,
            env={**os.environ, **caches, _STARTED: str(time.time())},
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def ask(self, method, **arguments):
        """Return what a method returns.

        Raises:
            Failure: it raised an error, or the process died.
        """
        try:
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
            result, error = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            self._notes.seek(0)
            result, error = None, f"the process died. {(self._notes.read().strip().splitlines() or [''])[-1]}"
        if error:
            raise Failure(f"{self.name}: {method}: {error}")
        return result

    def close(self):
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._closing.close()


def serve(worker):
    """Answer calls with the methods of an object until the side that asks is gone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = getattr(worker, method)(**arguments), None
        except Exception as error:
            answer = None, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # without the minutes that a compiler's helpers may take to end


def age():
    """Seconds since this process was started by a `Contestant`."""
    return time.time() - float(os.environ[_STARTED])


def peak_gib():
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
