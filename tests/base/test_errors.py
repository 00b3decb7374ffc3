import ast
import copy
import pathlib
import re

import pytest

import kddpm
from kddpm.base.errors import InputError, first_line, named_as

FLAGS = {"accumulation": "accumulation", "batch_size": "batch_size", "path": "out"}


@pytest.mark.parametrize(
    ("error", "as_arguments", "as_flags"),
    [
        (
            InputError("width", "must be at least 1", 0),
            "`width` must be at least 1. Received: 0",
            "`width` must be at least 1. Received: 0",  # no flag of this command
        ),
        (
            InputError("accumulation", "must divide {batch_size}", 3, batch_size=64),
            "`accumulation` must divide batch_size=64. Received: 3",
            "--accumulation must divide --batch_size=64. Received: 3",
        ),
        (
            InputError("path", "must end in .tflite", "a.bin"),
            "`path` must end in .tflite. Received: a.bin",
            "--out must end in .tflite. Received: a.bin",
        ),
        (
            InputError("accumulation", "goes without {batch_size}", batch_size=...),
            "`accumulation` goes without `batch_size`",
            "--accumulation goes without --batch_size",
        ),
        (
            InputError("photos/: 3 files are damaged ({path} says where)", path=...),
            "photos/: 3 files are damaged (`path` says where)",
            "photos/: 3 files are damaged (--out says where)",
        ),
        (InputError("accumulation", "must be a number", None), "`accumulation` must be a number. Received: None", None),
    ],
)
def test_one_error_reads_as_an_argument_and_as_a_flag(error, as_arguments, as_flags):
    assert str(error) == as_arguments
    assert as_flags is None or error.as_flags(FLAGS) == as_flags


def test_an_argument_is_named_as_that_which_it_came_from():
    with pytest.raises(InputError) as caught, named_as("path", "accumulation"):
        raise InputError("accumulation", "must divide {batch_size}", 3, batch_size=64)
    assert caught.value.as_flags(FLAGS) == "--out must divide --batch_size=64. Received: 3"
    with pytest.raises(InputError) as caught, named_as("path", "accumulation"):
        raise InputError("{accumulation} needs the extra", accumulation="tfds:x")
    assert caught.value.as_flags(FLAGS) == "--out=tfds:x needs the extra"


def test_what_came_may_hold_braces():
    """Only names that the error knows are filled in."""
    error = InputError("dataset", "must be one of {kinds} or {x}", "{accumulation}{}", x="npz")
    assert str(error) == "`dataset` must be one of {kinds} or x='npz'. Received: {accumulation}{}"


def test_the_parts_can_be_asked_for():
    error = InputError("width", "must be at least {blocks}", 0, blocks=2)
    assert (error.argument, error.expected, error.received, error.others) == (
        "width",
        "must be at least {blocks}",
        0,
        {"blocks": 2},
    )
    assert InputError("a.npz cannot be read").argument is None


def test_copies_read_the_same():
    error = copy.deepcopy(InputError("accumulation", "goes without {batch_size}", batch_size=...))
    assert error.as_flags(FLAGS) == "--accumulation goes without --batch_size"


def test_the_first_line_of_an_error_without_words_is_its_name():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def errors_raised():
    """Every call of `InputError` in the package, with the file that it is in."""
    for path in pathlib.Path(kddpm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "InputError":
                yield path, node


def test_every_name_in_braces_is_filled_in():
    seen = 0
    for path, call in errors_raised():
        seen += 1
        words = [n.value for argument in call.args for n in ast.walk(argument) if isinstance(n, ast.Constant)]
        named = {name for text in words if isinstance(text, str) for name in re.findall(r"\{([a-z_]\w*)\}", text)}
        known = {keyword.arg for keyword in call.keywords}
        assert None in known or named <= known, f"{path}:{call.lineno}"  # None: a dictionary of them
    assert seen > 150
