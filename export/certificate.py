"""What an exported file paints on this machine, beside what Keras painted."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import re
import sys
import time
import warnings

import numpy as np
from PIL import Image

from .edge.flags import InputError, count
from .edge.generator import Generator

# The largest limits that an export writes, kddpm/device/parity.py: grey levels on the mean and at most, None = any.
BOUNDS = {"float32": (1, 1), "float16": (0.5, None), "int8": (6, None)}
_MEGABYTE = 1e6
_MEBIBYTE = 2**20


def certificate(generator: Generator) -> tuple[dict[str, str], bool, np.ndarray]:
    """Compare a file with the vectors of its description.

    Returns:
        The rows to print, by name; whether noise and pictures are right; and the pictures: those expected, those that
        came, and their differences, uint8 (3 N, H, W, C).

    Raises:
        InputError: the description has no vectors or limits of an export.
    """
    about = generator.about
    try:
        mean_limit, limit = _limits(about)
        vectors, expected = _vectors(about)
    except ValueError as error:
        side = generator.path.with_suffix(".json")
        raise InputError(f"{side} must hold the vectors and limits of an export. Received: {error}") from None
    seeds = [vector["seed"] for vector in vectors]
    labels = [vector["label"] for vector in vectors] if about["num_classes"] else None
    noise, is_same = _compared_noise(generator, vectors, seeds)
    began = time.perf_counter()
    painted = np.stack(list(generator.generate(seeds, labels)))
    of_a_picture = (time.perf_counter() - began) / len(seeds)
    difference = np.abs(painted.astype(int) - expected)
    call = generator.seconds_of_a_call()
    is_near = difference.mean() <= mean_limit and (limit is None or difference.max() <= limit)
    rows = {
        "file": f"{about['file']}, {about['bytes'] / _MEGABYTE:.2f} MB, {about['precision']}, sha256 as described",
        "runtime": generator.runtime,
        "machine": f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}",
        "noise": noise,
        "pictures": f"of {count(len(seeds), 'seed')} off by {difference.mean():.3f} grey levels on the mean, "
        f"{difference.max()} at most; {(difference == 0).mean():.2%} of pixels identical",
        "allowed": f"{mean_limit} on the mean" + ("" if limit is None else f", {limit} at most"),
        "latency": f"{1e3 * call:.2f} ms a network call, {1e3 * of_a_picture:.1f} ms a picture",
        "peak memory": _peak_memory(),
        "verdict": "right" if is_same and is_near else "WRONG: " + " and ".join(
            name for name, fits in (("noise", is_same), ("pictures", is_near)) if not fits
        ),
    }  # fmt: skip
    return rows, bool(is_same and is_near), np.concatenate([expected, painted, difference.astype(np.uint8)])


def _compared_noise(generator, vectors, seeds) -> tuple[str, bool]:
    noise = generator.noise(seeds)
    if noise is None:
        return "none in this file that could be compared", True
    hashes = [hashlib.sha256(np.ascontiguousarray(one, "<f4").tobytes()).hexdigest() for one in noise]
    others = [vector["seed"] for vector, found in zip(vectors, hashes) if vector["noise_sha256"] != found]
    if others:
        return f"OTHER BITS than Keras's, of the seeds {', '.join(map(str, others))}", False
    return f"the bits of Keras, of {count(len(seeds), 'seed')}", True


def _limits(about) -> tuple[float, float | None]:
    """Return how far pictures may be from Keras's, in grey levels on the mean and at most; None = any distance."""
    if about["precision"] not in BOUNDS:
        raise ValueError(f"precision {about['precision']!r:.40}, which is none of {', '.join(BOUNDS)}")
    limits, found = about.get("limits"), []
    for name, bound in zip(("mean_grey_levels", "max_grey_levels"), BOUNDS[about["precision"]]):
        limit = limits.get(name) if isinstance(limits, dict) else None
        is_number = type(limit) in (int, float) and 0 <= limit <= (255 if bound is None else bound)
        if not is_number and not (bound is None and limit is None):
            shown = json.dumps(limit)[:40]
            raise ValueError(f"{name} {shown}, which is no number from 0 to {bound or 255}")
        found.append(limit)
    return found[0], found[1]


def _vectors(about) -> tuple[list[dict], np.ndarray]:
    """Return the vectors, and the pictures in them, uint8 (N, H, W, C)."""
    vectors, pictures = about.get("vectors"), []
    if not isinstance(vectors, list) or not vectors:
        raise ValueError("no vectors")
    for index, vector in enumerate(vectors):
        try:
            pictures.append(_picture(vector, about))
        except Exception as error:  # Pillow raises what it likes
            raise ValueError(f"vector {index} with {error!r:.100}") from None
    return vectors, np.stack(pictures)


def _picture(vector, about) -> np.ndarray:
    """Return the picture of a vector, uint8 (H, W, C), once all of the vector is what an export writes."""
    numbers = {"seed": range(-(2**31), 2**31)}
    if about["num_classes"]:
        numbers["label"] = range(about["num_classes"])
    for name, allowed in numbers.items():
        if type(vector[name]) is not int or vector[name] not in allowed:
            raise ValueError(f"a {name} out of range")
    if not re.fullmatch("[0-9a-f]{64}", vector["noise_sha256"]):
        raise ValueError("no hash of noise")
    height, width, channels = about["image_shape"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(base64.b64decode(vector["picture"]))) as image:
            if image.size != (width, height):
                raise ValueError("a picture of another size")
            picture = np.asarray(image).reshape(height, width, channels)
    if hashlib.sha256(picture.tobytes()).hexdigest() != vector["picture_sha256"]:
        raise ValueError("a picture of another picture_sha256")
    return picture


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "not known on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MEBIBYTE:.0f} MiB, of this process"
