"""Check on this machine what an exported file paints: python -m export.verify model.tflite

It compares the noise and the pictures with those of Keras that NAME.json holds, and prints them with the runtime, the
latency and the peak memory: what to send when something looks wrong. It needs what edge/ needs, nothing of kddpm, and
ends with status 1 where noise or pictures are not right.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import platform
import sys
import time

import numpy as np
from PIL import Image

from .edge.description import InputError, expanded
from .edge.generator import Generator, count
from .edge.pictures import grid, save

_MEGABYTE = 1e6
_MOST_THREADS = 256  # LiteRT itself sets no limit
_MEBIBYTE = 2**20


def main(arguments: list[str] | None = None) -> None:
    """Parse the flags, compare, and end with status 1 if the file paints something else."""
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=expanded, help="NAME.tflite, with NAME.json beside it")
    parser.add_argument("--out", type=expanded, help="NAME.png: what was expected, what came, and the difference")
    parser.add_argument("--threads", type=int, default=2, help="of LiteRT")
    parser.add_argument("--no-xnnpack", action="store_false", dest="xnnpack", help="the plain kernels")
    flags = parser.parse_args(arguments)
    try:
        if flags.out is not None and flags.out.suffix != ".png":
            raise InputError(f"--out must end in .png. Received: {flags.out}")
        if not 1 <= flags.threads <= _MOST_THREADS:
            raise InputError(f"--threads must lie in 1 .. {_MOST_THREADS}. Received: {flags.threads}")
        generator = Generator(flags.model, flags.threads, flags.xnnpack)
        try:
            rows, is_right, pictures = certificate(generator)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            side = flags.model.with_suffix(".json")
            raise InputError(
                f"{side} must hold the vectors and limits of an export. Received: {error!r:.100}"
            ) from None
        if flags.out is not None:
            save(flags.out, grid(pictures, columns=len(pictures) // 3))
    except (InputError, OSError) as error:
        sys.exit(f"export.verify: {error}")
    for name, text in rows.items():
        print(f"{name:<12}{text}")
    sys.exit(0 if is_right else 1)


def certificate(generator: Generator) -> tuple[dict[str, str], bool, np.ndarray]:
    """Compare a file with the vectors of its description.

    Returns:
        The rows to print, by name; whether noise and pictures are right; and the pictures: those expected, those that
        came, and their differences, uint8 (3 N, H, W, C).

    Raises:
        KeyError, TypeError, ValueError: the description has no vectors, or other ones.
    """
    about = generator.about
    vectors = about.get("vectors")
    if not vectors:
        raise KeyError("vectors")
    seeds, labels = [vector["seed"] for vector in vectors], [vector.get("label") for vector in vectors]
    labels = labels if about["num_classes"] else None
    expected = np.stack([_picture(vector["picture"], about["image_shape"]) for vector in vectors])
    noise, is_same = _compared_noise(generator, vectors, seeds)
    began = time.perf_counter()
    painted = generator.generate(seeds, labels)
    of_a_picture = (time.perf_counter() - began) / len(seeds)
    difference = np.abs(painted.astype(int) - expected)
    limit = about["limits"]
    largest = limit["max_grey_levels"]
    call = generator.seconds_of_a_call()
    is_near = difference.mean() <= limit["mean_grey_levels"] and (largest is None or difference.max() <= largest)
    rows = {
        "file": f"{about['file']}, {about['bytes'] / _MEGABYTE:.2f} MB, {about['precision']}, sha256 as described",
        "runtime": generator.runtime,
        "machine": f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}",
        "noise": noise,
        "pictures": f"of {count(len(seeds), 'seed')} off by {difference.mean():.3f} grey levels on the mean, "
        f"{difference.max()} at most; {(difference == 0).mean():.2%} of pixels identical",
        "allowed": f"{limit['mean_grey_levels']} on the mean" + ("" if largest is None else f", {largest} at most"),
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


def _picture(text, image_shape) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image).reshape(image_shape)


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "not known on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MEBIBYTE:.0f} MiB, of this process"


if __name__ == "__main__":
    main()
