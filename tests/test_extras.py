"""What a plain install lacks: every absence is one line that names the extra."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from packaging.requirements import Requirement

from kddpm import data
from kddpm.base import extras
from kddpm.base.errors import InputError
from kddpm.plots import style
from kddpm.runs import evaluate, presets, training

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where a package's module is not called as the package.
MODULES = {"pillow": "PIL", "absl-py": "absl"}


def modules(requirements):
    names = [Requirement(requirement).name for requirement in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


@pytest.fixture
def without(monkeypatch):
    """Makes the packages of an extra impossible to import."""

    def hide(extra):
        for module in extras.EXTRAS[extra]:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_the_extras_are_those_of_the_project():
    optional = dict(PROJECT["optional-dependencies"])
    assert Requirement(*optional.pop("all")).extras == set(optional) == set(extras.EXTRAS)
    for extra, requirements in optional.items():
        assert modules(requirements) == set(extras.EXTRAS[extra])
        assert {Requirement(requirement).name for requirement in requirements} == set(extras.EXTRAS[extra].values())


def test_the_pinned_requirements_satisfy_the_ranges_of_the_extras():
    lines = (re.sub(r"#.*", "", line).strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    pinned = {requirement.name: requirement.specifier for requirement in map(Requirement, filter(None, lines))}
    for requirements in PROJECT["optional-dependencies"].values():
        for dependency in map(Requirement, requirements):
            if dependency.name != "kddpm":
                (pin,) = pinned[dependency.name]
                assert pin.operator == "==" and dependency.specifier.contains(pin.version)


def test_everything_imported_is_a_dependency_or_an_extra():
    found = set()
    for path in (*(ROOT / "kddpm").rglob("*.py"), *(ROOT / "export").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    optional = {module for names in extras.EXTRAS.values() for module in names} - {"importlib_resources"}
    plain = modules(PROJECT["dependencies"])
    assert found - set(sys.stdlib_module_names) - {"kddpm"} == plain | optional


def test_the_package_imports_and_paints_without_any_extra():
    hidden = [module for names in extras.EXTRAS.values() for module in names]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))
import kddpm
network = kddpm.UNet((8, 8, 1), width=8, multipliers=(1,), blocks_per_level=1, attention_resolutions=(), groups=4)
model = kddpm.DiffusionModel(network, kddpm.schedules.linear(20, 1e-3, 0.5))
model.export("saved", "tf_saved_model", num_steps=2, parity_seeds=1, verbose=False)
try:
    model.export("model.tflite")
except kddpm.InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path_of(__file__))
    assert result.stdout == "format='litert' needs ai-edge-litert: pip install kddpm[export]\n", result.stderr
