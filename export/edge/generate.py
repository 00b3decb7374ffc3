"""Generate pictures from an exported .tflite, with only LiteRT, NumPy and Pillow.

    python generate.py model.tflite --seeds=0-15 --out=grid.png --threads=4

The random numbers, the schedule and the sampler are inside the file. Picture k depends only on seed k (and label k).
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import re
import sys
import time

import numpy as np
from PIL import Image

DESCRIPTION_VERSION = 3  # of NAME.json; its fields have other meanings in other versions
_MOST_THREADS = 256  # LiteRT itself sets no limit
_INT32 = range(-(2**31), 2**31)
_READABLE_SIDE = 48  # smaller pictures are enlarged to about this many pixels a side
_GUTTER, _GUTTER_GREY = 2, 128
_SAMPLERS = {
    "ancestral": "ancestral sampling",
    "ddim": "DDIM",
    "dpm_solver": "DPM-Solver++",
    "heun": "Heun's method",
    "predictor_corrector": "predictor-corrector sampling",
}


class InputError(ValueError):
    """An input cannot be used; the message says why in one line."""


class Generator:
    """An exported model.

    Args:
        path: NAME.tflite, with NAME.json in the same folder.
        threads: number of LiteRT threads.
        xnnpack: whether the XNNPACK delegate may run operators.

    Raises:
        InputError: a file that is missing, that is not what its side file describes, or that LiteRT cannot load; a side
            file of another version.
    """

    def __init__(self, path: pathlib.Path, threads: int = 2, xnnpack: bool = True):
        from ai_edge_litert import interpreter

        path = expanded(path)
        self.about = _side_file(path)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.about["sha256"]:
            raise InputError(
                f"{path} must be the file that {path.with_suffix('.json').name} describes: {self.about['bytes']} bytes "
                f"of another sha256. Received: {len(content)} bytes, truncated, altered or of another export"
            )
        resolver = interpreter.OpResolverType
        try:
            runtime = interpreter.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=resolver.AUTO if xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            self._start, self._step, self._finish = (
                runtime.get_signature_runner(name) for name in ("start", "step", "finish")
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{path} cannot be run by LiteRT: {str(error).splitlines()[0]}") from None
        taken = self._step.get_input_details()
        height, width, _ = self.about["image_shape"]
        state = [self.about["batch_size"], height, width, self.about["state_channels"]]
        if taken["x"]["shape"].tolist() != state or ("label" in taken) != bool(self.about["num_classes"]):
            raise InputError(
                f"{path.with_suffix('.json')} must describe {path.name}. Received: other batches, shapes or classes"
            )

    def generate(self, seeds: list[int], labels: list[int] | None = None, advance=lambda: None) -> np.ndarray:
        """Return pictures of seeds, uint8 (N, H, W, C); `advance` is called after every call of the network."""
        classes, batch = self.about["num_classes"], self.about["batch_size"]
        labels = _labels(labels, seeds, classes)
        pictures = []
        for first in range(0, len(seeds), batch):
            chunk = slice(first, first + batch)
            given = {"seed": np.resize(np.array(seeds[chunk], np.int32), batch)}
            if classes:
                given["label"] = np.resize(np.array(labels[chunk], np.int32), batch)
            x = self._start(seed=given["seed"])["x"]
            for index in range(self.about["network_calls"]):
                x = self._step(x=x, index=np.array([index], np.int32), **given)["x"]
                advance()
            pictures.append(self._finish(x=x)["image"][: len(seeds[chunk])].astype(np.uint8))
        return np.concatenate(pictures)

    def network_calls(self, pictures: int) -> int:
        """Return the number of network calls for this many pictures, in batches."""
        return -(-pictures // self.about["batch_size"]) * self.about["network_calls"]

    def way(self) -> str:
        """Return a description of the sampler and its steps, in words."""
        sampler, calls = self.about["sampler"], self.about["network_calls"]
        words = f"{_count(sampler['num_steps'], 'step')} of {_SAMPLERS.get(sampler['name'], sampler['name'])}"
        return words if calls == sampler["num_steps"] else f"{words}, {_count(calls, 'network call')}"


def main(arguments=None):
    """Parse the flags and generate."""
    parser = argparse.ArgumentParser(description="Pictures from an exported .tflite.")
    parser.add_argument("model", type=expanded, help="NAME.tflite, with NAME.json beside it")
    parser.add_argument("--seeds", default="0-15", help="one picture a seed: 0-15, or 1,5,10-20")
    parser.add_argument("--labels", help="classes, one a seed or one for all; seed modulo classes if not given")
    parser.add_argument("--out", type=expanded, default="grid.png", help="NAME.png, or a folder for a PNG a seed")
    parser.add_argument("--threads", type=int, default=2, help="of LiteRT")
    parser.add_argument("--xnnpack", action=argparse.BooleanOptionalAction, default=True, help="the faster kernels")
    flags = parser.parse_args(arguments)
    try:
        run(flags)
    except (InputError, OSError) as error:
        sys.exit(f"generate.py: {error}")


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Return a path with the home folder in place of ~, which shells leave in --out=~/grid.png."""
    return pathlib.Path(os.path.expanduser(path))


def run(flags) -> None:
    """Check the flags, generate the pictures and write them."""
    seeds = numbers("--seeds", flags.seeds)
    labels = None if flags.labels is None else numbers("--labels", flags.labels)
    if not 1 <= flags.threads <= _MOST_THREADS:
        raise InputError(f"--threads must lie in 1 .. {_MOST_THREADS}. Received: {flags.threads}")
    if flags.out.suffix not in (".png", ""):
        raise InputError(f"--out must end in .png, or be a folder. Received: {flags.out}")
    is_file = flags.out.suffix == ".png"
    if flags.out.exists() and flags.out.is_dir() == is_file:
        raise InputError(f"--out must be a .png file, or a folder. Received: {flags.out}, which is there and is not")
    parent = next(folder for folder in (flags.out / "x").absolute().parents if folder.is_dir() or folder.is_file())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out must be in a folder that can be written to. Received: {flags.out}")
    generator = Generator(flags.model, flags.threads, flags.xnnpack)
    calls = generator.network_calls(len(seeds))
    began, done = time.perf_counter(), 0

    def advance():
        nonlocal done
        done += 1
        spent = time.perf_counter() - began
        if sys.stderr.isatty() or done == calls:
            text = f"\r{done}/{calls} network calls, {1e3 * spent / done:.2f} ms a call, {spent:.1f} s"
            print(text, end="\n" if done == calls else "", file=sys.stderr, flush=True)

    pictures = generator.generate(seeds, labels, advance)
    if flags.out.suffix == ".png":
        save(flags.out, grid(pictures))
    else:
        for seed, picture in zip(seeds, pictures, strict=True):
            save(flags.out / f"{seed}.png", picture)
    print(f"{_count(len(seeds), 'picture')} in {flags.out}, each in {generator.way()}")


def numbers(flag: str, text: str) -> list[int]:
    """Parse numbers such as "0-15", "7" or "1,5,10-20"; a range includes both ends.

    Raises:
        InputError: anything else, or numbers that do not fit int32.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,12})(?:-(-?\d{1,12}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= last - first < 1_000_000:
            raise InputError(f"{flag} must look like 0-15 or 1,5,10-20. Received: {text!r}")
        if first not in _INT32 or last not in _INT32:
            raise InputError(f"{flag} must fit int32, {_INT32[0]} to {_INT32[-1]}. Received: {part.strip()}")
        found += range(first, last + 1)
    return found


def grid(pictures: np.ndarray) -> np.ndarray:
    """Arrange pictures, uint8 (N, H, W, C), in a grid as square as possible, enlarged if small, with grey gutters."""
    n, height, width, channels = pictures.shape
    enlarge = max(1, round(_READABLE_SIDE / max(height, width)))
    pictures = pictures.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    columns = math.ceil(math.sqrt(n))
    down, across = height * enlarge + _GUTTER, width * enlarge + _GUTTER
    size = (-(-n // columns) * down + _GUTTER, columns * across + _GUTTER, channels)
    canvas = np.full(size, _GUTTER_GREY, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = k // columns * down + _GUTTER, k % columns * across + _GUTTER
        canvas[y : y + height * enlarge, x : x + width * enlarge] = picture
    return canvas


def save(path: pathlib.Path, picture: np.ndarray) -> None:
    """Write a PNG to a temporary file and rename it, so that the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"part.{path.name}")
    try:
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(temporary, "PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _side_file(path: pathlib.Path) -> dict:
    """Read and check NAME.json of an export."""
    if not path.is_file():
        raise InputError(f"{path} is missing: an export is NAME.tflite with NAME.json beside it")
    side = path.with_suffix(".json")
    if not side.is_file():
        raise InputError(f"{side} is missing: an export is NAME.tflite with NAME.json beside it")
    try:
        about = json.loads(side.read_text())
    except ValueError:
        about = None
    if isinstance(about, dict) and about.get("description_version") != DESCRIPTION_VERSION:
        is_older = "description_version" not in about
        version = "none, as in older exports" if is_older else json.dumps(about["description_version"])[:40]
        raise InputError(
            f"{side} must have description_version {DESCRIPTION_VERSION}, the one that generate.py reads. "
            f"Received: {version}"
        )
    try:
        counts = [about[name] for name in ("network_calls", "state_channels", "batch_size", "bytes")]
        counts += [about["sampler"]["num_steps"], about["num_classes"] or 1, *about["image_shape"]]
        usable = all(type(count) is int and count >= 1 for count in counts) and len(about["image_shape"]) == 3
        usable = usable and isinstance(about["sha256"], str) and isinstance(about["sampler"]["name"], str)
    except (KeyError, TypeError):
        usable = False
    if not usable:
        raise InputError(
            f"{side} must be the description that the export wrote beside the file. Received: something else"
        )
    return about


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _labels(labels, seeds, classes):
    """Check labels and return one a seed, or None for a model without classes."""
    if not classes:
        if labels is not None:
            raise InputError("--labels were given, but the model has no classes")
        return None
    if labels is None:
        return [seed % classes for seed in seeds]
    if len(labels) == 1:
        labels = labels * len(seeds)
    if len(labels) != len(seeds):
        raise InputError(f"--labels must be one a seed, or one. Received: {len(labels)} for {len(seeds)} seeds")
    if not all(0 <= label < classes for label in labels):
        raise InputError(f"--labels must lie in 0 .. {classes - 1}. Received: {min(labels)} to {max(labels)}")
    return labels


if __name__ == "__main__":
    main()
