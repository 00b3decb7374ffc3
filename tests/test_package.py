import ast
import importlib
import re
import subprocess
import sys
import tomllib

import pytest
from helpers.places import ROOT
from packaging.requirements import Requirement

import kddpm

FILES = {path.stem: path for path in (ROOT / "kddpm").glob("*.py")}

# Imports go down. On the floors marked so, rooms may lean on each other, but never in a circle.
FLOORS = [
    {"errors", "files", "schedules", "parametrization", "process", "objectives", "noise", "images"}
    | {"progress", "memory", "archives"},
    {"layers", "unet", "walks", "samplers", "inputs", "descent", "draws", "strategies", "tallies"},
    {"generation", "editing", "likelihood", "litert", "parity", "exporting"},
    {"model"},
    {
        "presets",
        "data",
        "image_files",
        "decoding",
        "image_cache",
        "npz_files",
        "picture_files",
        "toy",
        "commands",
        "local_cluster",
        "sampling_flags",
    },
    {"runs", "fingerprint", "weights_files"},
    {"checkpoints"},
    {"plots"},
    {"training", "evaluation"},
]
LEANING = {0, 1, 2, 4}


def floor(room):
    (number,) = (i for i, rooms in enumerate(FLOORS) if room in rooms)
    return number


def imported(path):
    """Full names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "kddpm" if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(room):
    for name in imported(FILES[room]):
        package, _, rest = name.partition(".")
        if package == "kddpm" and rest:
            target = rest.split(".")[0]
            assert target in FILES, f"{room} imports kddpm.{target}, which is no room: import from where it is defined"
            yield target


def test_every_room_has_a_floor():
    assert set().union(*FLOORS) == set(FILES) - {"__init__"}
    assert sum(map(len, FLOORS)) == len(FILES) - 1


@pytest.mark.parametrize("room", sorted(set(FILES) - {"__init__"}))
def test_imports_go_down(room):
    for target in rooms_imported(room):
        allowed = floor(target) < floor(room) or (floor(target) == floor(room) and floor(room) in LEANING)
        assert allowed, f"{room} (floor {floor(room)}) imports {target} (floor {floor(target)})"


def test_imports_go_in_no_circle():
    left = {room: set(rooms_imported(room)) for room in FILES if room != "__init__"}
    while left:
        free = [room for room, targets in left.items() if not targets & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("room", sorted(FILES))
def test_nothing_imports_tests_or_benchmarks(room):
    assert not {name.split(".")[0] for name in imported(FILES[room])} & {"tests", "benchmarks", "pytest", "conftest"}


def test_importing_the_package_loads_nothing_heavy():
    script = (
        "import kddpm, sys; print(sorted({'tensorflow', 'keras', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("name", dir(kddpm))
def test_public_names_exist(name):
    assert getattr(kddpm, name) is not None


def test_unknown_names_say_so():
    with pytest.raises(AttributeError, match="module 'kddpm' has no attribute 'DDPM'"):
        _ = kddpm.DDPM


def test_public_names_are_those_of_their_rooms():
    for name, room in kddpm._HOMES.items():
        assert getattr(kddpm, name) is getattr(importlib.import_module(f"kddpm.{room}"), name)


@pytest.mark.parametrize("room", sorted(FILES))
def test_everything_public_has_a_docstring(room):
    def walk(node, name):
        if not ast.get_docstring(node):
            yield name
        for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else []:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                yield from walk(child, f"{name}.{child.name}")

    assert list(walk(ast.parse(FILES[room].read_text()), room)) == []


def test_the_pinned_requirements_satisfy_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (re.sub(r"#.*", "", line).strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    pinned = {requirement.name: requirement.specifier for requirement in map(Requirement, filter(None, lines))}
    assert project["dependencies"]
    for dependency in map(Requirement, project["dependencies"]):
        (pin,) = pinned[dependency.name]
        assert pin.operator == "=="
        assert dependency.specifier.contains(pin.version), f"{dependency} does not allow {pin.version}"
