"""What can this machine compute at most, and what share of that does a step of training reach?

    .venv/bin/python benchmarks/speed/ceiling.py

Operations/s of a product of two square matrices and of 3x3 convolutions, forward and backward, in float32 and bfloat16,
by TensorFlow and by PyTorch (channels-last) in turns. The operations of the networks are counted by PyTorch; a step of
training counts three times those of a forward pass. The report divides what `training.py` found by the most that is
reached in its precision.
"""

import contextlib
import functools

import cases
import report
import results

from kddpm.cli import commands

PROGRAMS = {"TensorFlow": "kddpm float32", "PyTorch": "PyTorch float32"}
PRECISIONS = ("float32", "bfloat16")


def measure():
    """The question's figures."""
    python, chosen = results.python(), results.chosen_cases(*cases.CASES)
    networks, seconds = cases.networks(chosen, python), results.seconds(0.3)
    with contextlib.ExitStack() as stack:
        running = {
            program: stack.enter_context(cases.start(cases.FORMS[form], python)) for program, form in PROGRAMS.items()
        }
        operations = {
            name: running["PyTorch"].ask("operations", architecture=network["architecture"])
            for name, network in networks.items()
        }
        turns = {
            (program, precision): functools.partial(it.ask, "ceiling", precision=precision, seconds=seconds)
            for precision in PRECISIONS
            for program, it in running.items()
        }
        found = results.in_turns(turns, results.rounds(5))
    rows = []
    for (program, precision), rounds in found.items():
        for what in rounds[0]:
            rates = [each[what] for each in rounds]
            rows.append({"what": what, "program": program, "precision": precision, "rates": rates})
            giga = report.spread([rate / 1e9 for rate in rates])
            print(f"  {what:44s}{program:12s}{precision:10s}{giga:>28s} GFLOP/s", flush=True)
    for name, count in operations.items():
        print(f"  {name}: {count / 1e9:.2f} GFLOP a picture", flush=True)
    return {"rows": rows, "operations": operations}


if __name__ == "__main__":
    commands.run(lambda: results.run("ceiling", measure))
