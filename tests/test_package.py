import ast
import importlib
import re
import tomllib

import pytest
from helpers.places import ROOT
from helpers.processes import python
from packaging.requirements import Requirement

import kddpm

PACKAGE = ROOT / "kddpm"

# The wings by floor, from the ground up. Imports go down: to a lower floor, or to another room of the same wing.
WINGS = [
    ["base"],
    ["theory", "networks", "data", "distribution"],
    ["sampling"],
    ["cli"],
    ["evaluation", "device"],
    ["model"],
    ["toy"],
    ["plots"],
    ["runs"],
    ["scripts"],
]
FLOORS = {wing: floor for floor, wings in enumerate(WINGS) for wing in wings}
# Doors of the package itself, through which a user comes in: they may import anything, and nothing imports them.
DOORS = {"kddpm", "kddpm.doctor", "kddpm.local_cluster"}
NO_TENSORFLOW = [
    "kddpm",
    *(f"kddpm.theory.{room}" for room in ("schedules", "parametrization", "power_averages", "sde")),
    *(f"kddpm.sampling.{room}" for room in ("samplers", "step_table")),
    *(f"kddpm.runs.{room}" for room in ("config", "presets")),
    "kddpm.data.labels",
]
NO_TENSORFLOW_WINGS = ("base", "cli")  # all of their rooms


def room_of(path):
    """kddpm/data/images.py -> kddpm.data.images, and the `__init__.py` of a wing -> the wing's own name."""
    return ".".join(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")


ROOMS = {room_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {room: ast.parse(path.read_text()) for room, path in ROOMS.items()}
INSIDE = sorted(set(ROOMS) - DOORS)


def wing_of(room):
    return room.split(".")[1]


def imported(room):
    """Full names of everything a file imports, inside functions too."""
    for node in ast.walk(TREES[room]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{room} imports relatively, from {'.' * node.level}{node.module or ''}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def defined(room):
    """Names that a file gives something at its top."""
    for node in TREES[room].body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def rooms_imported(room):
    """The rooms of kddpm that a file imports, each by the name of where it is defined."""
    for name in imported(room):
        if name.split(".")[0] != "kddpm":
            continue
        target, _, attribute = name.rpartition(".")
        if name in ROOMS:
            yield name
        else:
            assert target in ROOMS and attribute in defined(target), (
                f"{room} imports {name}, which is not defined there: import it from where it is"
            )
            yield target


def test_the_whole_package_is_seen():
    assert len(ROOMS) >= 60


def test_every_file_is_in_a_wing_and_every_wing_has_files():
    assert {wing_of(room) for room in INSIDE} == set(FLOORS)
    assert sum(map(len, WINGS)) == len(FLOORS)
    assert DOORS <= set(ROOMS)


@pytest.mark.parametrize("room", INSIDE)
def test_imports_go_down(room):
    wing = wing_of(room)
    for target in rooms_imported(room):
        assert target not in DOORS, f"{room} imports {target}, which is for users"
        other = wing_of(target)
        assert other == wing or FLOORS[other] < FLOORS[wing], (
            f"{room} (floor {FLOORS[wing]}) imports {target} (floor {FLOORS[other]})"
        )


@pytest.mark.parametrize("wing", FLOORS)
def test_no_circle_within_a_wing(wing):
    left = {room: set(rooms_imported(room)) for room in INSIDE if wing_of(room) == wing}
    while left:
        free = [room for room, targets in left.items() if not targets & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_imports_tests_or_benchmarks(room):
    assert not {name.split(".")[0] for name in imported(room)} & {
        "tests",
        "helpers",
        "benchmarks",
        "pytest",
        "conftest",
    }


def loaded_by(rooms, modules):
    """Which of these modules a process has in memory once it has imported these rooms, one after the other."""
    script = f"""
import importlib, sys
for room in {list(rooms)!r}:
    importlib.import_module(room)
    found = sorted(set({list(modules)!r}) & set(sys.modules))
    if found:
        sys.exit(f"{{room}} loads {{found}}")
"""
    return python("-c", script, cwd=ROOT).stderr.strip()


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by(["kddpm"], ["tensorflow", "keras", "numpy", "PIL", "matplotlib"]) == ""


def test_what_needs_no_tensorflow_loads_none():
    rooms = [*NO_TENSORFLOW, *(room for room in INSIDE if wing_of(room) in NO_TENSORFLOW_WINGS)]
    assert len(rooms) > 15 and set(rooms) <= set(ROOMS)
    assert loaded_by(rooms, ["tensorflow", "keras"]) == ""


def public_names():
    """name -> (room, name there), as `kddpm/__init__.pyi` has them."""
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname, (".".join(filter(None, ["kddpm", node.module])), alias.name)


PUBLIC = dict(public_names())


def test_public_names_are_those_of_the_stub():
    assert len(PUBLIC) > 30 and set(PUBLIC) | {"__version__"} == set(kddpm.__all__)
    assert set(PUBLIC) <= set(dir(kddpm))
    assert kddpm.__version__ == importlib.import_module("kddpm.base.version").__version__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_their_rooms(name):
    room, there = PUBLIC[name]
    if f"{room}.{there}" in ROOMS:
        assert getattr(kddpm, name) is importlib.import_module(f"{room}.{there}")
    else:
        assert getattr(kddpm, name) is getattr(importlib.import_module(room), there)


def test_unknown_names_say_so():
    with pytest.raises(AttributeError, match="No kddpm attribute DDPM"):
        _ = kddpm.DDPM


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_has_a_docstring(room):
    def walk(node, name):
        if not ast.get_docstring(node):
            yield name
        for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else []:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                yield from walk(child, f"{name}.{child.name}")

    assert list(walk(TREES[room], room)) == []


def test_the_pinned_requirements_satisfy_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (re.sub(r"#.*", "", line).strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    pinned = {requirement.name: requirement.specifier for requirement in map(Requirement, filter(None, lines))}
    assert project["dependencies"]
    for dependency in map(Requirement, project["dependencies"]):
        (pin,) = pinned[dependency.name]
        assert pin.operator == "=="
        assert dependency.specifier.contains(pin.version), f"{dependency} does not allow {pin.version}"
