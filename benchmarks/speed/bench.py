"""Every question about kddpm's speed, one after another: `make bench`.

    .venv/bin/python benchmarks/speed/bench.py                     # on two idle cores, about an hour
    .venv/bin/python benchmarks/speed/bench.py --quick             # some minutes: does all of it run?
    .venv/bin/python benchmarks/speed/bench.py --questions=training,sampling

Writes `benchmarks/results.json` after each question, and from it `benchmarks/results.md` and the table of README.md;
with --quick or --json elsewhere. Each question is also a script of its own, with the same flags.
"""

import importlib
import sys

import report
import results
from absl import flags

from kddpm.base.errors import InputError
from kddpm.cli import commands

# The ceiling before the training that is compared with it; all but the questions' own flags are in `results`.
ALL = ("ceiling", "training", "sampling", "startup", "inputs", "growth")
QUESTIONS = flags.DEFINE_list("questions", list(ALL), "which, in this order")


def main():
    """Ask every question; one that fails does not keep the others from being asked."""
    commands.check_among("questions", QUESTIONS.value, ALL)
    failures = []
    for name in QUESTIONS.value:
        try:
            results.run(name, modules[name].measure)
        except InputError as error:
            failures.append(f"{name}: {error}")
            print(failures[-1], file=sys.stderr, flush=True)
    if failures:
        raise InputError(f"{len(failures)} of {len(QUESTIONS.value)} questions failed. {failures[0]}")
    if not results.QUICK.value and not results.JSON.value:
        report.quote(results.ROOT / "README.md", results.read())


modules = {name: importlib.import_module(name) for name in ALL}  # before the flags are read, as some define their own

if __name__ == "__main__":
    commands.run(main)
