"""Programs in processes of their own, as a user starts them."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest


def python(*arguments, cwd=None, **environment):
    """Python with these arguments, such as a script and its flags, to its end; `environment` adds variables."""
    command, variables = [sys.executable, *map(str, arguments)], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables)


def started(*arguments):
    """Python with these arguments, still running."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, *processes, seconds=300):
    """Until the condition holds. A test fails where it is too late, or where one of the processes has ended."""
    late = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > late or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            pytest.fail(f"{[process.communicate() for process in processes]}")
        time.sleep(0.001)


@contextlib.contextmanager
def answering(*command, cwd=None):
    """A program that answers each line of JSON with another: a function that asks it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, **pipes) as process:

        def ask(**order):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()
        process.wait(timeout=20)


# The `main` of sample.py for one list of flags after another, so that TensorFlow starts once and a loop is traced once.
SAMPLE = """
import contextlib, functools, io, json, sys
from absl import flags
from kddpm.base.errors import InputError
from kddpm.scripts import sample
sample.define_flags()
for line in sys.stdin:
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["sample.py", *json.loads(line)["flags"]])
    out, error = io.StringIO(), None
    with contextlib.redirect_stdout(out):
        try:
            sample.sample()
        except InputError as caught:
            error = caught.as_flags({name: name for name in flags.FLAGS})
    print(json.dumps([out.getvalue(), error]), flush=True)
    from kddpm.runs import build
    build.load_run = functools.cache(getattr(build.load_run, "__wrapped__", build.load_run))
"""


@contextlib.contextmanager
def sampling(cwd=None):
    """A function that calls sample.py with these flags, and returns what it printed, and its error or None."""
    with answering(sys.executable, "-c", SAMPLE, cwd=cwd) as ask:
        yield lambda *flags: ask(flags=list(map(str, flags)))


def lacking(what):
    """Skip a test for which this machine lacks something; with KDDPM_REQUIRE_BROWSER=1 that is a failure."""
    (pytest.fail if os.environ.get("KDDPM_REQUIRE_BROWSER") == "1" else pytest.skip)(f"needs {what}")
