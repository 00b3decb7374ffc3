"""NAME.json, which describes an exported file to clients and to people."""

import dataclasses
import hashlib
import json
import os
import pathlib
import textwrap

import numpy as np

from kddpm.base.files import expand, read_json, replacing
from kddpm.device import litert
from kddpm.device.signatures import PRIMARY
from kddpm.sampling import samplers
from kddpm.sampling.denoiser import Denoiser
from kddpm.sampling.step_table import StepTable

VERSION = 2  # of the description; clients refuse unknown versions


def of_sampling(
    denoiser: Denoiser, sampler: samplers.Sampler, table: StepTable, guidance_scale: float
) -> dict[str, object]:
    """Return the entries for the pictures and the sampler, whose arguments have the names of sample.py's flags.

    `network_calls` is the number of calls of `step` for a picture. It is more than the sampler's `num_steps` for
    heun and predictor_corrector, which call the network several times a step.
    """
    options = dataclasses.asdict(sampler)
    if "variance" in options and options["variance"] is None:
        options["variance"] = denoiser.objective.variance
    return {
        "image_shape": list(denoiser.image_shape),
        "state_channels": denoiser.image_shape[-1] * (2 if table.has_memory else 1),
        "num_classes": denoiser.num_classes,
        "prediction": denoiser.objective.prediction,
        "num_timesteps": denoiser.schedule.num_timesteps,
        "sampler": {"name": samplers.name_of(sampler), "num_steps": len(np.unique(table.timesteps)), **options},
        "network_calls": table.num_rows,
        "guidance_scale": guidance_scale,
    }


def write(about: dict, path: pathlib.Path) -> dict:
    """Write the description of an export next to it, and return it as read back from JSON."""
    text = json.dumps(about, indent=2, allow_nan=False) + "\n"
    with replacing(side_file(path)) as side:
        side.write_text(text)
    return json.loads(text)


def side_file(path: str | os.PathLike) -> pathlib.Path:
    """Return the path of an export's description: NAME.json for NAME.tflite, FOLDER.json for any FOLDER."""
    path = pathlib.Path(expand(path))
    return path.with_suffix(".json") if path.suffix == ".tflite" else path.with_name(f"{path.name}.json")


def report(about: dict) -> str:
    """Return a description as a table for people."""
    agreement, latency = about["parity"], about["latency_ms"]
    sampler = dict(about["sampler"])
    name, num_steps = sampler.pop("name"), sampler.pop("num_steps")
    calls = about["network_calls"]
    rows = {
        "file": f"{about['file']}, {about['bytes'] / 1e6:.2f} MB, {about['precision']}",
        "picture": f"{'x'.join(map(str, about['image_shape']))}, {num_steps} steps of {name}"
        + (f" in {calls} calls of the network" if calls != num_steps else "")
        + "".join(f", {argument}={value}" for argument, value in sampler.items()),
        "signatures": "; ".join(f"{name}({', '.join(s['inputs'])})" for name, s in about["signatures"].items()),
    }
    if "operators" in about:
        rows["operators"] = ", ".join(f"{name} {uses}" for name, uses in about["operators"].items())
        delegation = about["delegation"]
        rows["delegated"] = f"{delegation['share']:.1%} of a step's operators run in XNNPACK; the others: " + ", ".join(
            f"{name} {uses}" for name, uses in delegation["outside"].items()
        )
    threads = f", {about['threads']} threads" if "threads" in about else ""
    rows["latency"] = f"{latency['step']:.2f} ms a network call, {latency['picture']:.1f} ms a picture{threads}"
    rows["noise"] = "the bits of Keras"
    rows["parity"] = (
        f"of {agreement['seeds']} seeds, pictures are off by {agreement['mean_grey_levels']:.3f} grey levels "
        f"on the mean, {agreement['max_grey_levels']} at most; {agreement['identical_pixels']:.2%} of pixels identical"
    )
    rows["a step"] = (
        f"off by {agreement['step_mean_error']:.1e} on the mean, {agreement['step_max_error']:.1e} at most, "
        "where pixels are in [-1, 1]"
    )
    width = 100
    lines = []
    for name, text in rows.items():
        first, *more = textwrap.wrap(text, width)
        lines += [f"{name:<12}{first}", *(" " * 12 + line for line in more)]
    return "\n".join(lines)


def described_before(path: pathlib.Path) -> dict | None:
    """Return the description of an earlier export at the same path; None if there is none."""
    try:
        described = read_json(side_file(path))
        return described if described["file"] == path.name and "kddpm" in described else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def facts_of_file(content: bytes) -> dict:
    """Return the entries for a `.tflite` that need no run: size, hash, operators, and share of XNNPACK."""
    share, outside = litert.delegation(content)
    return {
        "bytes": len(content),
        "sha256": _sha256(content),
        "operators": litert.operators(content),
        "delegation": {"signature": PRIMARY, "share": share, "outside": outside},
    }


def facts_of_folder(folder: pathlib.Path) -> dict:
    """Return the entries for a SavedModel: size, and the hash of each of its files."""
    return {
        "bytes": sum(file.stat().st_size for file in files(folder)),
        "files": {name_in(folder, file): _sha256(file.read_bytes()) for file in files(folder)},
    }


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return all files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def name_in(folder: pathlib.Path, file: pathlib.Path) -> str:
    """Return a file's name relative to the folder, as a description lists it."""
    return file.relative_to(folder).as_posix()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
