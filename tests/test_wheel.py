"""The package as it is installed: built from a copy of the tree, put in a place of its own, run in an empty folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = {"train": "preset", "sample": "inpaint", "evaluate": "metrics", "export": "precision"}
SKIPPED = shutil.ignore_patterns("__pycache__", "node_modules")


def run(command, cwd, **changes):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | changes
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a wheel is made from, with what npm may have left in it."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    for folder in ("kddpm", "export"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=SKIPPED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "export" / "web" / "node_modules").mkdir()
    (tree / "export" / "web" / "node_modules" / "index.js").write_text("// not ours")
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    made = run([sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={out}"], tree)
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel in it and nothing else; its commands find everything else in this environment."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", f"--target={site}", wheel]
    made = run(command, site)
    assert made.returncode == 0, made.stderr
    return site


@pytest.fixture
def installed(site, tmp_path):
    """Runs a command, or with "python" a program, of the installed package from an empty folder."""

    def start(name, *arguments, **changes):
        program = [sys.executable] if name == "python" else [sys.executable, site / "bin" / name]
        return run([*program, *arguments], tmp_path, PYTHONPATH=str(site), **changes)

    return start


def test_every_package_of_the_tree_is_listed():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "kddpm").rglob("__init__.py")
        if path.parent.name != "export"
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found | {"kddpm.export"})


def test_the_wheel_holds_what_the_tree_holds(tree, wheel):
    expected = {
        (pathlib.PurePosixPath("kddpm" if top == "export" else ".") / path.relative_to(tree).as_posix()).as_posix()
        for top in ("kddpm", "export")
        for path in (tree / top).rglob("*")
        if path.is_file() and "node_modules" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_takes_one_name_in_site_packages(site, installed):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"kddpm", "bin"}
    program = "import importlib.util, kddpm; print(kddpm.__file__, importlib.util.find_spec('export'))"
    result = installed("python", "-c", program)
    assert result.stdout == f"{site / 'kddpm' / '__init__.py'} None\n", result.stderr


def test_there_are_four_commands(site):
    assert set(PROJECT["project"]["scripts"]) == {f"kddpm-{name}" for name in COMMANDS}
    assert {path.name for path in (site / "bin").iterdir()} == {f"kddpm-{name}" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_the_help_of_its_script_and_names_itself(installed, name):
    def without_heading(text):
        return [line for line in text.splitlines() if not re.fullmatch(r"\S*(/kddpm-\w+|\w+\.py):", line)]

    said = installed(f"kddpm-{name}", "--help").stdout
    script = ["-m", "export"] if name == "export" else [f"{name}.py"]
    expected = run([sys.executable, *script, "--help"], ROOT).stdout
    assert f"--{COMMANDS[name]}:" in said and f"    kddpm-{name} --" in said
    assert without_heading(said) == without_heading(
        expected.replace(f"python {' '.join(script)} --", f"kddpm-{name} --")
    )
    result = installed(f"kddpm-{name}", "--run_dir=run", "words")
    assert result.returncode == 2 and result.stderr == f"kddpm-{name}: flags must begin with --. Received: words\n"


def test_a_dry_run_of_the_installed_command(installed, tmp_path):
    result = installed("kddpm-train", "--dry_run", "--preset=mnist", "--steps=7")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 7 and not list(tmp_path.iterdir())


def test_the_installed_package_paints_and_has_its_digits(installed, tmp_path):
    program = """
import kddpm
network = kddpm.UNet((8, 8, 1), width=8, multipliers=(1,), blocks_per_level=1, attention_resolutions=(), groups=4)
model = kddpm.DiffusionModel(network, kddpm.schedules.linear(20, 1e-3, 0.5))
pictures = model.generate(range(2), num_steps=2, verbose=False)
kddpm.images.save_png("grid.png", kddpm.images.grid(pictures))
print(pictures.shape, kddpm.data.load("digits").images.shape)
"""
    result = installed("python", "-c", program)
    assert result.stdout.splitlines()[-1] == "(2, 8, 8, 1) (1797, 8, 8, 1)", result.stderr
    assert (tmp_path / "grid.png").exists()


def test_npm_installs_into_the_cache_where_the_package_cannot_be_written(site, installed, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "npm").write_text(
        "#!/bin/sh\nmkdir node_modules && cp package-lock.json node_modules/.package-lock.json\n"
    )
    (programs / "npm").chmod(0o755)
    program = """
import os
from kddpm.export import site
access = os.access
os.access = lambda path, mode: mode != os.W_OK and access(path, mode)  # as for a user who is not root
site.install()
site.install()
assert "Apache License" in site._licence()
"""
    cache, path = tmp_path / "cache", f"{programs}{os.pathsep}{os.environ['PATH']}"
    result = installed("python", "-c", program, XDG_CACHE_HOME=str(cache), PATH=path)
    assert result.returncode == 0, result.stderr
    web = cache / "kddpm" / "web"
    assert result.stdout == f"Fetching LiteRT.js with npm into {web / 'node_modules'} ...\n"
    assert {p.name for p in web.iterdir()} == {"package.json", "package-lock.json", ".npmrc", "node_modules"}
    assert not (site / "kddpm" / "export" / "web" / "node_modules").exists()


@pytest.mark.slow
def test_train_sample_evaluate_and_export_by_the_installed_commands(installed, tmp_path):
    small = ["--width=8", "--batch_size=16", "--num_timesteps=20", "--sampling_steps=2", "--steps=2"]
    for name, *flags in (
        ("kddpm-train", "--preset=digits", *small),
        ("kddpm-sample", "--seeds=0-3", "--out=grid.png"),
        ("kddpm-evaluate", "--max_images=2", "--batch_size=2"),
        ("kddpm-export", "--format=saved_model", "--num_steps=2", "--parity_seeds=1", "--out=saved"),
    ):
        result = installed(name, "--run_dir=run", *flags)
        assert result.returncode == 0, result.stderr
    assert "In Keras its pictures are those of: kddpm-sample --run_dir=run " in result.stdout
    assert (tmp_path / "grid.png").exists() and (tmp_path / "run" / "evaluation" / "bits_per_dim.json").exists()
