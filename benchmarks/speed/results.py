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
from absl import flags

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands

ROOT = pathlib.Path(__file__).parents[2]
TORCH = flags.DEFINE_string("torch", str(ROOT / ".bench/bin/python"), "Python with PyTorch; `make bench` makes it")
JSON = flags.DEFINE_string("json", str(ROOT / "benchmarks/results.json"), "the figures; tables come beside it")
QUICK = flags.DEFINE_bool("quick", False, "short turns and few of them: to see that all runs, not for figures")
ROUNDS = flags.DEFINE_integer("rounds", None, "turns of each contestant; 1 if quick", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", None, "of each turn of training, about; 0.3 if quick", lower_bound=0.0)
CASES = flags.DEFINE_list(
    "cases", None, f"networks, among {', '.join(cases.CASES)}; what a question takes if not given"
)
FORMS = flags.DEFINE_list("only", None, "words of which a contestant's name must have one, such as kddpm,compiled")


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


def chosen_forms(forms):
    """Those of some forms that --only lets through."""
    return [form for form in forms if not FORMS.value or any(word in form.name for word in FORMS.value)]


def python():
    """{program: its interpreter}.

    Raises:
        InputError: there is no such file.
    """
    if not os.access(TORCH.value, os.X_OK):
        raise InputError(f"--torch must be a Python with benchmarks/requirements.txt. Received: {TORCH.value}")
    return {"kddpm": sys.executable, "keras": sys.executable, "torch": TORCH.value}


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
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {program: _versions(python()[program], packages) for program, packages in names.items()},
        "load": os.getloadavg()[0],
    }


def _versions(interpreter, packages):
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {packages}}}))"
    return json.loads(subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True).stdout)


def read():
    """The figures so far, {question: its figures}."""
    path = pathlib.Path(JSON.value).expanduser()
    return json.loads(path.read_text()) if path.exists() else {}


def run(question, measure):
    """Measure, and put what was found into the JSON file under the name of the question, beside the others'."""
    import report

    path = pathlib.Path(JSON.value).expanduser()
    check_output("json", str(path), is_folder=False)
    begun, about = datetime.datetime.now(datetime.UTC), machine()
    offered = ", ".join(feature for feature, is_there in about["features"].items() if is_there)
    print(
        f"{question}: {about['processor']}, {about['cores']} cores, {offered or 'no vector features known'}", flush=True
    )
    try:
        figures = measure()
    except contestants.Failure as failure:
        raise InputError(str(failure)) from None
    found = read()
    found[question] = {
        "machine": about,
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
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
