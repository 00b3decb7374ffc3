"""How long is it from the start of Python to the first step of training, and what takes that time?

    .venv/bin/python benchmarks/speed/startup.py --cases=digits,mnist --rounds=3

Every round starts each program anew, twice: first with nothing that an earlier run has compiled, then again with it.
"tracing" is the time that TensorFlow's graph takes to be written down, "first step" all that is left: the optimisation
of the graph, compilation and the step itself. Beside that stand commands of the project and imports of others.
"""

import functools
import os
import statistics
import subprocess
import tempfile
import time

import cases
import contestants
import report
import results
import training

from kddpm.cli import commands

FORMS = ("kddpm", "kddpm float32 XLA", "PyTorch float32 channels-last", "PyTorch float32 channels-last compiled")


def start_both(case, form, architecture, python):
    """Take the first step twice, in processes of their own; returns what each was asked and how it went."""
    arguments, found = training.arguments_of(case, form, architecture), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        for _ in ("cold", "again"):
            with cases.start(form, python, cache) as contestant:
                ends = contestant.ask("prepare_training", **arguments)["ends"]
            found.append(phases(ends))
    return found


def phases(ends):
    """Seconds of each phase, from the times at which they ended."""
    imports = max(end for name, end in ends.items() if name in ("torch", "kddpm"))
    traced = ends.get("trace", ends["build"])
    tracing = traced - ends.get("enter", ends["build"])
    return {
        "python": ends["python"],
        "imports": imports - ends["python"],
        "building": ends["build"] - imports,
        "tracing": tracing,
        "first step": ends["step"] - ends["build"] - tracing,
        "all": ends["step"],
    }


def measure_case(case, forms, architecture, python, rounds):
    """A row for each form and for each of its two starts."""
    turns = {form.name: functools.partial(start_both, case, form, architecture, python) for form in forms}
    rows = []
    for name, found in results.in_turns(turns, rounds).items():
        for cache, starts in zip(("nothing", "all"), zip(*found, strict=True), strict=True):
            seconds = {phase: [each[phase] for each in starts] for phase in starts[0]}
            rows.append({"case": case.name, "form": name, "compiled_before": cache, "seconds": seconds})
            parts = ", ".join(f"{phase} {statistics.median(s):.1f}" for phase, s in seconds.items() if phase != "all")
            print(f"  {name:44s}{report.spread(seconds['all']):>24s} s: {parts}", flush=True)
    return rows


def command_lines(python):
    """{what it is called: the command}."""
    ours = {f"{script}.py --help": [f"{script}.py", "--help"] for script in ("train", "sample", "evaluate")}
    ours["python -m export --help"] = ["-m", "export", "--help"]
    ours["train.py --preset=mnist --dry_run"] = ["train.py", "--preset=mnist", "--dry_run"]
    ours |= {f"import {name}": ["-c", f"import {name}"] for name in ("kddpm", "keras", "tensorflow")}
    theirs = {f"import {name}": ["-c", f"import {name}"] for name in ("torch",)}
    theirs["import diffusers' pipelines"] = ["-c", "from diffusers import DDIMPipeline, UNet2DModel"]
    return {
        name: [python[program], *rest]
        for program, lines in (("kddpm", ours), ("torch", theirs))
        for name, rest in lines.items()
    }


def seconds_of(command):
    """Seconds of a command.

    Raises:
        Failure: it ended with an error.
    """
    start = time.perf_counter()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=results.ROOT, env=environment, capture_output=True, text=True)
    # absl ends with 1 after --help.
    if done.returncode and not (done.returncode == 1 and "--help" in command and done.stdout):
        raise contestants.Failure(f"{' '.join(command)}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return time.perf_counter() - start


def measure():
    """The question's figures."""
    python, chosen = results.python(), results.chosen_cases("mnist")
    networks, found = cases.networks(chosen, python), {"rows": [], "commands": {}}
    for case in chosen:
        print(f"\n{case.name}", flush=True)
        forms = results.chosen_forms(case, [cases.FORMS[name] for name in FORMS])
        found["rows"] += measure_case(case, forms, networks[case.name]["architecture"], python, results.rounds(2))
    print("\nseconds", flush=True)
    turns = {name: functools.partial(seconds_of, line) for name, line in command_lines(python).items()}
    for name, seconds in results.in_turns(turns, results.rounds(3)).items():
        found["commands"][name] = seconds
        print(f"  {name:44s}{report.spread(seconds):>24s}", flush=True)
    return found


if __name__ == "__main__":
    commands.run(lambda: results.run("startup", measure))
