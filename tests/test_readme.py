"""What the README prints, run as printed."""

import functools
import re

import pytest
from helpers.places import ROOT
from helpers.processes import python
from PIL import Image

from kddpm import data, device
from kddpm.runs import presets
from kddpm.sampling import samplers
from kddpm.theory import parametrization, schedules

README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_works_as_printed(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + program
    result = python("-c", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "digits.png") as grid:
        assert grid.size == (8 * 50 + 2, 8 * 50 + 2)
    assert (tmp_path / "digits.keras").exists()


SCRIPTS = r"\w+\.py|-m export|-m kddpm\.doctor|-m kddpm\.plots|export/edge/generate\.py"
COMMANDS = re.findall(rf"^python ({SCRIPTS}) (.*?)(?: +#.*)?$", README, re.MULTILINE)


@functools.cache
def help_of(script):
    return python(*script.split(), "--help", cwd=ROOT).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_the_readme_exist(command):
    script, flags = command
    names = re.findall(r"--(\w+)", flags)
    assert names and all(re.search(rf"--(\[no\])?{name}\b", help_of(script)) for name in names)


def test_every_script_has_its_command():
    scripts = {path.name for path in ROOT.glob("*.py")}
    others = {"-m export", "-m kddpm.doctor", "-m kddpm.plots", "export/edge/generate.py"}
    assert {script for script, _ in COMMANDS} == scripts | others


def test_the_tables_of_the_readme_are_complete():
    for kind in (*data.KINDS, *presets.PRESETS, *device.PRECISIONS):
        assert f"| `{kind}` |" in README
    words = {
        "prediction": parametrization.PREDICTIONS,
        "weighting": parametrization.WEIGHTINGS,
        "variance": parametrization.VARIANCES,
        "timestep_sampling": parametrization.TIMESTEP_SAMPLINGS,
        "schedule": schedules.BY_NAME,
        "sampler": samplers.BY_NAME,
        "spacing": schedules.SPACINGS,
    }
    for choice, names in words.items():
        assert f"| `{choice}` | {', '.join(f'`{name}`' for name in names)} |" in README
    for path in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", README):
        assert (ROOT / path).exists(), path
