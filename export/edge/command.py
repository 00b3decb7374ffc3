"""The command of generate.py: its flags, and the pictures that they ask for.

Rooms that import NumPy are imported where they are needed, so that a wrong flag, and Ctrl-C, are answered at once.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Iterator

from . import flags

_PROGRAM = "generate.py"
_SAMPLERS = {
    "ancestral": "ancestral sampling",
    "ddim": "DDIM",
    "dpm_solver": "DPM-Solver++",
    "heun": "Heun's method",
    "predictor_corrector": "predictor-corrector sampling",
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the flags and generate.

    Args:
        arguments: the flags; None = those of the command line.
    """
    with flags.ending_in_a_line(_PROGRAM):
        run(_checked(_parser().parse_args(arguments)))


def _parser() -> flags.Parser:
    parser = flags.Parser(prog=_PROGRAM, description="Pictures from an exported .tflite.", allow_abbrev=False)
    parser.add_argument("model", help="NAME.tflite, with NAME.json beside it")
    parser.add_argument(
        "--seeds", help="a picture each: 0-15, or 1,5,10-20; at most 100000 in all; 0-15, or 0-7 of an edit"
    )
    parser.add_argument("--labels", help="classes, one a seed or one for all; seed modulo classes if not given")
    parser.add_argument(
        "--out", default="grid.png", help="NAME.png, or a folder for a PNG a seed as soon as it is painted"
    )
    parser.add_argument("--num_steps", help="steps, at most T; the file's if not given")
    parser.add_argument("--variations", help="an image file: paint pictures like it")
    parser.add_argument("--strength", help="of --variations: 0 = the picture, 1 = another one; 0.5")
    parser.add_argument("--inpaint", help="an image file: paint the part that --mask leaves open")
    parser.add_argument("--mask", help="of --inpaint, an image file: white = keep, black = paint")
    parser.add_argument("--jump_length", help="of --inpaint: steps to go back, so that the new fits; 10")
    parser.add_argument("--resamplings", help="of --inpaint: how often each stretch of steps is taken; 5, at most 1000")
    parser.add_argument("--threads", default="2", help="of LiteRT, 1 to 256")
    parser.add_argument("--xnnpack", action="store_true", default=True, help="the faster kernels, on by default")
    parser.add_argument("--no-xnnpack", action="store_false", dest="xnnpack", help="the plain kernels")
    return parser


def _checked(given: argparse.Namespace) -> argparse.Namespace:
    """Check all that can be checked without the model, and return the flags with values in place of text."""
    given.edit = _edit(given)
    given.model = flags.path("MODEL", given.model)
    given.threads = flags.threads(given.threads)
    kinds = {
        flags.numbers: ("seeds", "labels"),
        flags.integer: ("num_steps", "jump_length", "resamplings"),
        flags.decimal: ("strength",),
        flags.path: ("variations", "inpaint", "mask"),
    }
    if given.seeds is None:
        given.seeds = "0-7" if given.edit else "0-15"
    for parsed, names in kinds.items():
        for name in names:
            text = getattr(given, name)
            setattr(given, name, None if text is None else parsed(f"--{name}", text))
    given.out = flags.output(given.out)
    return given


def _edit(given):
    """Return "variations", "inpaint" or None, and check that the flags belong together."""
    edits = [name for name in ("variations", "inpaint") if getattr(given, name) is not None]
    if len(edits) > 1:
        raise flags.InputError("--variations and --inpaint exclude each other. Received: both")
    edit = edits[0] if edits else None
    for name, of in {
        "strength": "variations",
        "mask": "inpaint",
        "jump_length": "inpaint",
        "resamplings": "inpaint",
    }.items():
        if getattr(given, name) is not None and edit != of:
            raise flags.InputError(f"--{name} belongs to --{of}. Received: none")
    if edit == "inpaint" and given.mask is None:
        raise flags.InputError("--inpaint needs --mask, an image file. Received: none")
    return edit


def run(given: argparse.Namespace) -> None:
    """Generate the pictures of checked flags, write them and say where they are."""
    from .generator import Generator
    from .pictures import kept, opened

    generator = Generator(given.model, given.threads, given.xnnpack)
    shape = generator.about["image_shape"]
    options = {"labels": given.labels, "num_steps": given.num_steps, "progress": _shown_progress()}
    if given.edit == "variations":
        picture = opened("--variations", given.variations, shape)
        strength = 0.5 if given.strength is None else given.strength
        pictures = generator.variations(picture, strength, given.seeds, **options)
    elif given.edit == "inpaint":
        picture = opened("--inpaint", given.inpaint, shape)
        mask = opened("--mask", given.mask, [*shape[:2], 1])[..., 0]
        options.update(jump_length=given.jump_length)
        options.update({} if given.resamplings is None else {"resamplings": given.resamplings})
        pictures = generator.inpaint(picture, kept(mask), given.seeds, **options)
    else:
        pictures = generator.generate(given.seeds, **options)
    _write(given.out, given.seeds, pictures)
    way = _way(generator.about, given.num_steps)
    print(f"{flags.count(len(given.seeds), 'picture')} in {given.out}, each in {way}")


def _write(out: pathlib.Path, seeds: list[int], pictures: Iterator) -> None:
    """Write a grid of all pictures, or a file a seed, each as soon as it is painted."""
    import numpy as np

    from .pictures import grid, save

    if out.suffix == ".png":
        save(out, grid(np.stack(list(pictures))))
        return
    written = 0
    try:
        for seed, picture in zip(seeds, pictures):
            save(out / f"{seed}.png", picture)
            written += 1
    except KeyboardInterrupt:
        so_far = flags.count(written, "picture") if written else "nothing"
        raise KeyboardInterrupt(f"{so_far} written in {out}") from None


def _way(about, num_steps):
    """Return the sampler and its steps in words."""
    sampler, calls = about["sampler"], about["network_calls"]
    steps = num_steps or sampler["num_steps"]
    words = f"{flags.count(steps, 'step')} of {_SAMPLERS.get(sampler['name'], sampler['name'])}"
    return words if num_steps or calls == steps else f"{words}, {flags.count(calls, 'network call')}"


def _shown_progress():
    """Return a function that shows the calls of the network on the terminal."""
    began = time.perf_counter()

    def progress(done, calls):
        spent = time.perf_counter() - began
        if sys.stderr.isatty() or done == calls:
            text = f"\r{done}/{calls} network calls, {1e3 * spent / done:.2f} ms a call, {spent:.1f} s"
            print(text, end="\n" if done == calls else "", file=sys.stderr, flush=True)

    return progress
