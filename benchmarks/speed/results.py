"""What the scripts of this folder share: their flags, and the figures in `results.json`."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

import cases  # first: it says where kddpm is
import contestants
import psutil
import report
from absl import flags

from kddpm.base import progress
from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands

QUICK_FORMS = ("kddpm", "kddpm bfloat16", "Keras's layers", "PyTorch float32", "PyTorch float32 channels-last")
ROOT = pathlib.Path(__file__).parents[2]
TORCH = flags.DEFINE_string("torch", str(ROOT / ".bench/bin/python"), "Python with PyTorch; `make bench` makes it")
JSON = flags.DEFINE_string(
    "json", None, "gets the figures, and the page beside it; benchmarks/results.json, if quick demo/bench/results.json"
)
QUICK = flags.DEFINE_bool("quick", False, "short turns and few of them: to see that all runs, not for figures")
ROUNDS = flags.DEFINE_integer("rounds", None, "turns of each contestant; 1 if quick", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", None, "of each turn of training, about; 0.3 if quick", lower_bound=0.0)
CASES = flags.DEFINE_list(
    "cases", None, f"networks, among {', '.join(cases.CASES)}; what a question takes if not given"
)
FORMS = flags.DEFINE_list("only", None, "words of which a contestant's name must have one, such as kddpm,compiled")

for flag in (TORCH, JSON, QUICK, ROUNDS, SECONDS, CASES, FORMS):  # so that --help of every script shows them
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])


def rounds(full):
    """Rounds: those of the flag, or `full`, or 1 if quick."""
    return ROUNDS.value or (1 if QUICK.value else full)


def seconds(full):
    """Seconds of a turn: those of the flag, or `full`, or 0.3 if quick."""
    return SECONDS.value if SECONDS.value is not None else 0.3 if QUICK.value else full


def chosen_cases(*names, quick=("digits",)):
    """The cases of the flag, or those of these names."""
    names = CASES.value or (quick if QUICK.value else names)
    commands.check_among("cases", names, list(cases.CASES))
    return [cases.CASES[name] for name in names]


def chosen_forms(case, forms):
    """Those of some forms that --only lets through; without it those that are worth their time, and if quick a few."""
    if FORMS.value:
        return [form for form in forms if any(word in form.name for word in FORMS.value)]
    return [form for form in cases.worthwhile(case, forms) if not QUICK.value or form.name in QUICK_FORMS]


def python():
    """{program: its interpreter}.

    Raises:
        InputError: there is no such file.
    """
    if not os.access(TORCH.value, os.X_OK):
        raise InputError(f"--torch must be a Python with benchmarks/requirements.txt. Received: {TORCH.value}")
    return {"kddpm": sys.executable, "keras": sys.executable, "torch": os.path.abspath(TORCH.value)}


def in_turns(turns, rounds, task="Taking turns"):
    """Call functions in turns, A B A B ..., so that a machine that slows down slows all of them.

    Args:
        turns: {name: function without arguments that returns a figure}.
        rounds: how often each is called.
        task: the first words of the progress bar.

    Returns:
        {name: list of its figures}; without those that failed, which are named on stderr.
    """
    figures = {name: [] for name in turns}
    with progress.bar(rounds * len(turns), f"  {task}", "turn", "auto", leave=not sys.stderr.isatty()) as bar:
        for _ in range(rounds):
            for name in list(figures):
                try:
                    figures[name].append(turns[name]())
                except contestants.Failure as failure:
                    print(f"  {failure}", file=sys.stderr, flush=True)
                    del figures[name]
                bar.update()
    return figures


def machine():
    """The processor, what it offers, and the versions of what is compared."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    offered = set(about.get("flags", "").split())
    features = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
    names = {"kddpm": ("tensorflow", "keras", "numpy"), "torch": ("torch", "diffusers", "numpy")}
    return {
        "processor": about.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": {feature: feature in offered for feature in features},
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {program: _versions(python()[program], packages) for program, packages in names.items()},
        "busy": psutil.cpu_percent(2.0) / 100,  # with what others compute: no contestant has been started
    }


def _versions(interpreter, packages):
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {packages}}}))"
    return json.loads(subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True).stdout)


def json_path():
    """Where the figures are kept; quick ones do not replace the others."""
    if JSON.value:
        return pathlib.Path(JSON.value).expanduser()
    return ROOT / ("demo/bench" if QUICK.value else "benchmarks") / "results.json"


def read():
    """The figures so far, {question: its figures}."""
    return json.loads(json_path().read_text()) if json_path().exists() else {}


def _flags_that_matter():
    """The command line, without where things are."""
    return [argument for argument in sys.argv[1:] if not argument.lstrip("-").startswith(("torch=", "json="))]


def run(question, measure):
    """Measure, and put what was found into the JSON file under the name of the question, beside the others'."""
    path = json_path()
    check_output("json", str(path), is_folder=False)
    begun, about = datetime.datetime.now(datetime.UTC), machine()
    offered = ", ".join(feature for feature, is_there in about["features"].items() if is_there)
    print(f"{question}: {about['processor']}, {about['cores']} cores, {offered or 'features unknown'}", flush=True)
    if about["busy"] > report.BUSY:
        print(f"Others use {100 * about['busy']:.0f} % of this machine: the figures will be wrong", flush=True)
    try:
        figures = measure()
    except contestants.Failure as failure:
        raise InputError(str(failure)) from None
    found = read()
    found[question] = {
        "machine": about,
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *_flags_that_matter()]),
        "date": f"{begun:%Y-%m-%d}",
        "minutes": (datetime.datetime.now(datetime.UTC) - begun).total_seconds() / 60,
        "quick": QUICK.value,
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.replace(path)
    path.with_suffix(".md").write_text(report.text(found))
