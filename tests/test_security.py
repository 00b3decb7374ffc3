"""Nothing in the project unpickles, evaluates or imports what a file says: dangerous calls are banned by name."""

import ast

import pytest
from helpers.places import ROOT

FILES = [*ROOT.glob("*.py"), *ROOT.glob("kddpm/**/*.py"), *ROOT.glob("export/**/*.py")]
FILES = [path for path in FILES if "node_modules" not in path.parts]

ALLOWED = {
    "export/edge/runtime.py": ["importlib.import_module of a name that is not kddpm's"] * 2,  # the runtimes it lists
    "export/site.py": ["subprocess"],  # starts npm, with words of its own alone
    "kddpm/distribution/local_cluster.py": ["ctypes", "subprocess"],  # starts what its user typed
}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "ctypes", "runpy", "subprocess"}
CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}  # as plain names
METHODS = {"load_model", "unsafe_load", "full_load", "popen", "execv", "enable_unsafe_deserialization", "loads_pickle"}
DOTTED = {"os.system", "builtins.eval", "builtins.exec", "keras.config.enable_unsafe_deserialization"}


def dotted(node):
    """a.b.c of a chain of attributes."""
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def offences(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            name = dotted(node.func) or ""
            last = name.rsplit(".", 1)[-1]
            keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            if name in CALLS or name in DOTTED or last in METHODS:
                yield name
            elif name in ("np.load", "numpy.load") and keywords.get("allow_pickle") is not False:
                yield f"{name} without allow_pickle=False"
            elif last in ("read_array", "load") and keywords.get("allow_pickle"):
                yield f"{name} with allow_pickle"
            elif keywords.get("shell") or keywords.get("safe_mode") is False or keywords.get("trust_remote_code"):
                yield f"{name} of a shell, or of code from elsewhere"
            elif name == "importlib.import_module" and not is_own(node.args[0]):
                yield f"{name} of a name that is not kddpm's"


def is_own(argument):
    """Whether what is imported is a room of this package, whatever the rest of its name."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
    return isinstance(first, ast.Constant) and str(first.value).startswith("kddpm.")


def test_the_whole_project_is_seen():
    """A file that lies where nobody looks would be allowed anything."""
    assert len([path for path in FILES if "kddpm" in path.relative_to(ROOT).parts]) >= 60
    assert {"train.py", "sample.py", "evaluate.py"} <= {path.name for path in FILES}
    assert set(ALLOWED) <= {path.relative_to(ROOT).as_posix() for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_dangerous_call(path):
    found = list(offences(ast.parse(path.read_text())))
    assert found == ALLOWED.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import safe_load",
        "eval('1')",
        "import os; os.system('ls')",
        "import numpy as np; np.load('x.npz')",
        "import numpy as np; np.load('x.npz', allow_pickle=True)",
        "import keras; keras.models.load_model('x.keras')",
        "import importlib; importlib.import_module(name)",
        "f(x, shell=True)",
        "keras.saving.load_thing('x', safe_mode=False)",
    ],
)
def test_the_ban_sees(code):
    assert list(offences(ast.parse(code)))
