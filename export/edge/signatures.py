"""The signatures of a loaded file: whether they are those that NAME.json describes, and the way they paint."""

from __future__ import annotations

import pathlib

from .description import InputError

_WAYS = {  # to a picture, the first that a file has
    "step": {"start", "step", "finish"},
    "denoise": {"denoise", "noise"},
    "generate": {"generate"},
}


def check(run: dict, about: dict, path: pathlib.Path) -> None:
    """Check that inputs have the shapes and classes of the description.

    Args:
        run: runners of the signatures, by name.
        about: the description.
        path: of the file.

    Raises:
        InputError: they have others.
    """
    batch = about["batch_size"]
    height, width, colours = about["image_shape"]
    shapes = {"seed": [batch], "label": [batch], "t": [batch]}
    for name, runner in run.items():
        shapes["x"] = [batch, height, width, colours if name == "denoise" else about["state_channels"]]
        inputs = runner.get_input_details()
        same = all(inputs[key]["shape"].tolist() == shape for key, shape in shapes.items() if key in inputs)
        with_label = name in ("generate", "step", "denoise") and bool(about["num_classes"])
        if not same or ("label" in inputs) != with_label:
            side = path.with_suffix(".json")
            raise InputError(f"{side} must describe {path.name}. Received: other batches, shapes or classes")


def way(run: dict, path: pathlib.Path) -> str:
    """Return the signature by which a file paints: "step", "denoise" or "generate".

    Args:
        run: runners of the signatures, by name.
        path: of the file.

    Raises:
        InputError: a signature is missing for each of them.
    """
    for name, needed in _WAYS.items():
        if needed | _drawing(run, name) <= set(run):
            return name
    ways = "; or ".join(", ".join(sorted(names)) for names in _WAYS.values())
    raise InputError(f"{path} must have the signatures {ways}. Received: {', '.join(run)}")


def _drawing(run, name):
    """Return the signatures that draw what this one takes in a file for GPUs."""
    inputs = run[name].get_input_details() if name in run else {}
    return {"noise"} if "noise" in inputs else {"start"} if name == "generate" and "x" in inputs else set()
