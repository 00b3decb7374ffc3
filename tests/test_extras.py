"""What a plain install lacks: every absence is one line that names the extra."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from helpers.networks import of_least_networks
from helpers.small_runs import make_run
from packaging.requirements import Requirement

from kddpm import data
from kddpm.base import extras
from kddpm.base.errors import InputError
from kddpm.plots import style
from kddpm.runs import evaluate, presets, training

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HIDDEN = {module for names in extras.EXTRAS.values() for module in names} - {"flatbuffers"}  # TensorFlow has it
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


def test_the_package_imports_and_exports_a_saved_model_without_any_extra(tmp_path):
    program = f"""
import sys
sys.modules.update(dict.fromkeys({HIDDEN}))
import kddpm
network = kddpm.UNet((8, 8, 1), width=8, multipliers=(1,), blocks_per_level=1, attention_resolutions=(), groups=4)
model = kddpm.DiffusionModel(network, kddpm.schedules.linear(20, 1e-3, 0.5))
model.export("saved", "tf_saved_model", num_steps=2, parity_seeds=1, verbose=False)
try:
    model.export("model.tflite")
except kddpm.InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout == "format='litert' needs ai-edge-litert: pip install kddpm[export]\n", result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "saved.json"]


@pytest.mark.parametrize(
    ("script", "flags", "line"),
    [
        ("-m export", "--run_dir={run}", "export: --format=tflite needs ai-edge-litert: pip install kddpm[export]"),
        ("-m export", "--run_dir={run} --format=web", "export: --format=web needs ai-edge-litert: pip install kddpm["),
        ("-m kddpm.plots", "--out=figures", "plots: A figure needs matplotlib: pip install kddpm[plots]"),
    ],
)
def test_a_command_says_so_before_tensorflow_starts(tmp_path, script, flags, line):
    make_run(tmp_path / "run", "digits", weights=False)
    module, given = script.split()[1], flags.format(run=tmp_path / "run").split()
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({HIDDEN}))
sys.argv[1:] = {given}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and line in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert "TensorFlow" not in result.stdout


def test_tensorflow_datasets_are_named(without):
    without("tfds")
    with pytest.raises(InputError, match=r"needs tensorflow-datasets: pip install kddpm\[tfds\]$") as raised:
        data.load("tfds:mnist")
    assert raised.value.as_flags({"dataset": "dataset"}).startswith("--dataset=tfds:mnist needs tensorflow-datasets")


def test_figures_are_named(without):
    without("plots")
    with pytest.raises(InputError, match=r"^A figure needs matplotlib: pip install kddpm\[plots\]$"):
        style.subplots(1, 1)


@of_least_networks()
def test_a_run_trains_without_matplotlib_and_leaves_the_curve_out(without, tmp_path, capsys):
    without("plots")
    config = presets.make_config(
        "digits", width=8, multipliers=(1,), attention_resolutions=(), num_timesteps=20, batch_size=4, steps=2,
        sampling_steps=2, sample_every=1, log_every=1,
    )  # fmt: skip
    for _ in range(2):  # the second time, nothing that was left out has to be made up for
        training.train(config, tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if "matplotlib" in line]
    assert lines == ["There will be no loss curve, as it needs matplotlib: pip install kddpm[plots]"]
    assert not (tmp_path / "run" / "loss.png").exists() and (tmp_path / "run" / "metrics.csv").exists()
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2

    evaluate.evaluate(tmp_path / "run", num_terms=2, max_images=1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("bits_per_dim.json (the figure needs matplotlib: pip install kddpm[plots]) in ")
    assert [path.name for path in (tmp_path / "run" / "evaluation").iterdir()] == ["bits_per_dim.json"]
