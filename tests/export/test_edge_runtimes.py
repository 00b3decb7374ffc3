"""export/edge on the runtimes and Pythons that boards have; benchmarks/device_matrix.py tries real ones."""

import ast
import importlib
import json
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest
from ai_edge_litert import interpreter

from export.edge import generator as edge
from export.edge import runtime

EDGE = pathlib.Path(edge.__file__).parent


@pytest.fixture
def installed(monkeypatch):
    """Make imports find these runtimes alone: {package: version}."""

    def install(**versions):
        for module in runtime._RUNTIMES:
            package = module.split(".")[0]
            version = versions.get(package)
            monkeypatch.setitem(sys.modules, module, version and interpreter)
            if package == "tflite_runtime":
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
            monkeypatch.setattr(sys.modules[package], "__version__", version, raising=False)

    return install


@pytest.mark.parametrize(
    "versions",
    [
        {"ai_edge_litert": "1.0.1"},
        {"tflite_runtime": "2.13.0"},
        {"tflite_runtime": "2.14.0.post1"},
        {"tensorflow": "2.21.0-rc0"},
        {"ai_edge_litert": "1.0.1", "tflite_runtime": "2.7.0"},
    ],
)
def test_any_runtime_that_is_new_enough_paints(exported, trained_like, installed, versions):
    path, expected = exported(), trained_like.generate([3], "ancestral", 6)
    installed(**versions)
    assert np.abs(next(edge.Generator(path).generate([3])).astype(int) - expected[0]).max() <= 1


@pytest.mark.parametrize(("package", "version"), [("tflite_runtime", "2.12.0"), ("tensorflow", "2.9.1")])
def test_an_older_runtime_is_refused_in_one_line(exported, described, installed, package, version):
    needed, name = described(exported())["min_runtime_version"], package.replace("_", "-")
    installed(**{package: version})
    assert needed == "2.13.0"  # RIGHT_SHIFT and BITWISE_XOR
    expected = rf"tiny_float32\.tflite needs TensorFlow Lite {needed} or newer.* Received: {name} {version}$"
    with pytest.raises(edge.InputError, match=expected):
        edge.Generator(exported())


def test_what_the_side_file_requires_is_compared(exported, installed, tmp_path):
    for file in (exported(), exported().with_suffix(".json")):
        shutil.copy(file, tmp_path / f"copy{file.suffix}")
    side = tmp_path / "copy.json"
    about = json.loads(side.read_text())
    installed(tflite_runtime="2.14.0")
    edge.Generator(tmp_path / "copy.tflite")
    for needed, error in (("2.17.0", "Lite 2.17.0 or newer"), ("newest", "something else"), (2, "something else")):
        side.write_text(json.dumps({**about, "min_runtime_version": needed}))
        with pytest.raises(edge.InputError, match=rf"{error}[^\n]*$"):
            edge.Generator(tmp_path / "copy.tflite")
    for litert, newest in (("1.0.1", "2.17.0"), ("2.3.0", "2.21.0")):  # as new as these of TensorFlow
        installed(ai_edge_litert=litert)
        side.write_text(json.dumps({**about, "min_runtime_version": newest}))
        edge.Generator(tmp_path / "copy.tflite")
        side.write_text(json.dumps({**about, "min_runtime_version": "2.22.0"}))
        with pytest.raises(
            edge.InputError, match=rf"needs TensorFlow Lite 2.22.0 or newer. Received: ai-edge-litert {litert}$"
        ):
            edge.Generator(tmp_path / "copy.tflite")


def test_without_a_runtime_it_says_what_to_install(exported, installed):
    installed()
    with pytest.raises(edge.InputError, match=r"pip install ai-edge-litert, or [^\n]* Received: none of them$"):
        edge.Generator(exported())


def test_a_runtime_that_cannot_be_imported_says_why(exported, installed, monkeypatch):
    """Such as one whose libraries are missing."""
    installed()

    def fail(name, imported=importlib.import_module):
        if name == "tflite_runtime.interpreter":
            raise ImportError("libc.so.6: version `GLIBC_2.34' not found\nsecond line")
        return imported(name)

    monkeypatch.setattr(runtime.importlib, "import_module", fail)
    with pytest.raises(edge.InputError, match=r"'numpy<2'\. Received: [^\n]* cannot be imported: ImportError\([^\n]*$"):
        edge.Generator(exported())


def test_a_runtime_of_another_numpy_is_refused_in_one_line(exported, installed, monkeypatch):
    """tflite-runtime 2.14 beside NumPy 2 is imported, and fails in its first call."""
    installed(tflite_runtime="2.14.0")

    def fail(**options):
        raise SystemError("returned a result with an exception set")

    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", types.SimpleNamespace(Interpreter=fail))
    with pytest.raises(
        edge.InputError, match=r"tflite-runtime 2\.14\.0 was built for: pip install 'numpy<2'\. Received"
    ):
        edge.Generator(exported())


def test_a_runtime_that_takes_no_number_of_threads_paints(exported, installed, monkeypatch):
    """ai-edge-litert 1.1.0 sets the threads of an interpreter that it has not made yet."""
    path = exported()
    installed(ai_edge_litert="1.1.0")

    def interpret(model_path, num_threads=None):
        if num_threads is not None:
            raise AttributeError("'Interpreter' object has no attribute '_interpreter'")
        return interpreter.Interpreter(model_path=model_path)

    monkeypatch.setitem(sys.modules, runtime._RUNTIMES[0], types.SimpleNamespace(Interpreter=interpret))
    assert next(edge.Generator(path).generate([3])).shape == (8, 8, 1)


def test_xnnpack_is_asked_for_only_where_there_is_a_choice(exported, installed, monkeypatch):
    installed(tflite_runtime="2.14.0")
    without = types.SimpleNamespace(Interpreter=interpreter.Interpreter)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", without)
    edge.Generator(exported())
    with pytest.raises(edge.InputError, match=r"tiny_float32\.tflite cannot be run with --no-xnnpack"):
        edge.Generator(exported(), xnnpack=False)


CLIENT = [*sorted(EDGE.glob("*.py")), EDGE.parent / "verify.py", EDGE.parent / "certificate.py"]


@pytest.mark.parametrize("file", CLIENT, ids=lambda file: file.name)
def test_the_client_is_python_3_7(file):
    tree = ast.parse(file.read_text(), feature_version=(3, 7))
    has_annotations = any(isinstance(node, (ast.arg, ast.FunctionDef)) for node in ast.walk(tree))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "__future__" in imported or not has_annotations
    newer = {"removeprefix", "removesuffix", "BooleanOptionalAction", "is_relative_to"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {"strict", "missing_ok"} & {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
