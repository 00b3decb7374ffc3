"""Generate pictures from an exported .tflite, with LiteRT or tflite-runtime, NumPy and Pillow alone.

    python generate.py model.tflite --seeds=0-15 --out=grid.png --threads=4
    python generate.py model.tflite --num_steps=10
    python generate.py model.tflite --variations=photo.jpg --strength=0.5
    python generate.py model.tflite --inpaint=photo.jpg --mask=mask.png

The random numbers, the schedule and the sampler are inside the file. Picture k depends only on seed k (and label k).
Another number of steps, variations and inpainting need a file with the signatures denoise and noise, of the sampler
ancestral or ddim. This script needs the other files of this folder beside it.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import time

import numpy as np
from description import InputError, expanded
from generator import Generator, count
from pictures import grid, save
from PIL import Image, ImageOps

_MOST_THREADS = 256  # LiteRT itself sets no limit
_INT32 = range(-(2**31), 2**31)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """End with the line."""
        sys.exit(f"generate.py: {message}")


def main(arguments=None):
    """Parse the flags and generate."""
    parser = Parser(description="Pictures from an exported .tflite.", allow_abbrev=False)
    parser.add_argument("model", type=expanded, help="NAME.tflite, with NAME.json beside it")
    parser.add_argument("--seeds", help="one picture a seed: 0-15, or 1,5,10-20; 0-15 if not given, 0-7 of an edit")
    parser.add_argument("--labels", help="classes, one a seed or one for all; seed modulo classes if not given")
    parser.add_argument("--out", type=expanded, default="grid.png", help="NAME.png, or a folder for a PNG a seed")
    parser.add_argument("--num_steps", type=int, help="steps, at most T; the file's if not given")
    parser.add_argument("--variations", type=expanded, help="an image file: paint pictures like it")
    parser.add_argument("--strength", type=float, help="of --variations: 0 = the picture, 1 = another one; 0.5")
    parser.add_argument("--inpaint", type=expanded, help="an image file: paint the part that --mask leaves open")
    parser.add_argument("--mask", type=expanded, help="of --inpaint, an image file: white = keep, black = paint")
    parser.add_argument("--jump_length", type=int, help="of --inpaint: steps to go back, so that the new fits; 10")
    parser.add_argument("--resamplings", type=int, help="of --inpaint: how often each stretch of steps is taken; 5")
    parser.add_argument("--threads", type=int, default=2, help="of LiteRT")
    parser.add_argument("--xnnpack", action="store_true", default=True, help="the faster kernels, on by default")
    parser.add_argument("--no-xnnpack", action="store_false", dest="xnnpack", help="the plain kernels")
    flags = parser.parse_args(arguments)
    try:
        run(flags)
    except (InputError, OSError) as error:
        sys.exit(f"generate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("generate.py: interrupted; nothing written")


def run(flags) -> None:
    """Check the flags, generate the pictures and write them."""
    edit = _edit(flags)
    seeds = numbers("--seeds", ("0-7" if edit else "0-15") if flags.seeds is None else flags.seeds)
    labels = None if flags.labels is None else numbers("--labels", flags.labels)
    if not 1 <= flags.threads <= _MOST_THREADS:
        raise InputError(f"--threads must lie in 1 .. {_MOST_THREADS}. Received: {flags.threads}")
    _check_out(flags.out)
    generator = Generator(flags.model, flags.threads, flags.xnnpack)
    options = {"labels": labels, "num_steps": flags.num_steps, "progress": _shown_progress()}
    if edit == "variations":
        picture = opened("--variations", flags.variations, generator.about["image_shape"])
        pictures = generator.variations(picture, 0.5 if flags.strength is None else flags.strength, seeds, **options)
    elif edit == "inpaint":
        picture = opened("--inpaint", flags.inpaint, generator.about["image_shape"])
        mask = opened("--mask", flags.mask, [*generator.about["image_shape"][:2], 1])[..., 0]
        options.update(jump_length=flags.jump_length, resamplings=5 if flags.resamplings is None else flags.resamplings)
        pictures = generator.inpaint(picture, _kept(mask), seeds, **options)
    else:
        pictures = generator.generate(seeds, **options)
    if flags.out.suffix == ".png":
        save(flags.out, grid(pictures))
    else:
        for seed, picture in zip(seeds, pictures):
            save(flags.out / f"{seed}.png", picture)
    print(f"{count(len(seeds), 'picture')} in {flags.out}, each in {generator.way(flags.num_steps)}")


def _edit(flags):
    """Return "variations", "inpaint" or None, and check that the flags belong together."""
    edits = [name for name in ("variations", "inpaint") if getattr(flags, name) is not None]
    if len(edits) > 1:
        raise InputError("--variations and --inpaint exclude each other. Received: both")
    edit = edits[0] if edits else None
    for name, of in {
        "strength": "variations",
        "mask": "inpaint",
        "jump_length": "inpaint",
        "resamplings": "inpaint",
    }.items():
        if getattr(flags, name) is not None and edit != of:
            raise InputError(f"--{name} belongs to --{of}. Received: none")
    if edit == "inpaint" and flags.mask is None:
        raise InputError("--inpaint needs --mask, an image file. Received: none")
    return edit


def _kept(mask):
    """Return which pixels a mask of grey values, or of 0 and 1, keeps, bool (H, W)."""
    most = mask.max()
    if 1 < most <= 127:
        raise InputError(f"--mask must have white, above 127, where to keep the picture. Received: at most {most}")
    return mask > (127 if most > 1 else 0)


def _check_out(out):
    if out.suffix not in (".png", ""):
        raise InputError(f"--out must end in .png, or be a folder. Received: {out}")
    is_file = out.suffix == ".png"
    if out.exists() and out.is_dir() == is_file:
        raise InputError(f"--out must be a .png file, or a folder. Received: {out}, which is there and is not")
    inside = out if is_file else out / "x"
    parent = next(folder for folder in inside.absolute().parents if folder.is_dir() or folder.is_file())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out must be in a folder that can be written to. Received: {out}")


def _shown_progress():
    """Return a function that shows the calls of the network on the terminal."""
    began = time.perf_counter()

    def progress(done, calls):
        spent = time.perf_counter() - began
        if sys.stderr.isatty() or done == calls:
            text = f"\r{done}/{calls} network calls, {1e3 * spent / done:.2f} ms a call, {spent:.1f} s"
            print(text, end="\n" if done == calls else "", file=sys.stderr, flush=True)

    return progress


def opened(flag: str, path: pathlib.Path, image_shape: list[int]) -> np.ndarray:
    """Return an image file as uint8 (H, W, C), cropped around its centre and resized; transparency becomes white.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise InputError(f"{flag} needs a model of grey or RGB pictures. Received: one of {channels} channels")
    try:
        with Image.open(path) as image:
            image = _in_8_bit(ImageOps.exif_transpose(image)).convert("RGBA")
    except Exception as error:  # decoders raise what they like
        raise InputError(f"{flag} must be an image file. Received: {path} ({error})") from None
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(
        "L" if channels == 1 else "RGB"
    )
    is_larger = min(image.width / width, image.height / height) >= 1
    resample = Image.Resampling.BOX if is_larger else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(image, (width, height), resample)).reshape(height, width, channels)


def _in_8_bit(image):
    """Return a picture whose grey values have 16 bits with 8, where Pillow's own conversion clips them at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels of 32 bits; expected 8 or 16")
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))


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


if __name__ == "__main__":
    main()
