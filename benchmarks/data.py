"""How long a folder or a zip of many small pictures takes to be listed, inspected and decoded, and in what memory.

    .venv/bin/python benchmarks/data.py --out=/tmp/pictures
    .venv/bin/python benchmarks/data.py --out=/tmp/pictures --files=1000000 --size=16

Writes colour PNGs in ten class folders, and the same as a zip, where they are not there yet. Each step has a process of
its own; its memory is what it holds at most above what it held before.
"""

import argparse
import functools
import multiprocessing
import pathlib
import shutil
import time
import zipfile

import numpy as np
from PIL import Image

from kddpm import data
from kddpm.base import memory
from kddpm.data import decoding, image_cache, image_files

CLASSES = 10


def write_pictures(folder, count, size):
    """Pictures with some structure, so that they compress like pictures: noise, blurred."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class {i % CLASSES}" / f"picture {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, compress_level=1)


def write_zip(path, folder):
    """The same pictures, stored as they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for picture in sorted(folder.rglob("*.png")):
            archive.write(picture, picture.relative_to(folder))


def opened(spec):
    """The list of files."""
    kind, _, path = spec.partition(":")
    return image_files.open_folder(path) if kind == "folder" else image_files.open_zip(path)


def measured(prepare, work, results):
    """Do the work; put its seconds and memory on the queue."""
    prepared = prepare()
    begun = time.monotonic()
    with memory.Gain() as gain:
        work(prepared)
    results.put((time.monotonic() - begun, gain.bytes))


def in_a_process(prepare, work):
    """(seconds, bytes) of `work(prepare())`, without what the preparation takes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measured, args=(prepare, work, results))
    process.start()
    result = results.get()
    process.join()
    return result


def nothing():
    """There is nothing to prepare."""


def list_files(spec, _):
    """Names, order and classes."""
    opened(spec)


def inspect(files):
    """The size and colours of every file, from its header."""
    decoding.common_shape(files, None, None, verbose=False)


def load(spec, size, cache_dir, _):
    """All of it, into a memory map in place of memory."""
    image_cache.MAX_RAM_BYTES = 0
    data.load(spec, size, 3, cache_dir=cache_dir, progress=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out", type=lambda path: pathlib.Path(path).expanduser(), required=True, help="folder for the pictures"
    )
    parser.add_argument("--files", type=int, default=100_000, help="how many pictures")
    parser.add_argument("--size", type=int, default=32, help="pixels on a side")
    arguments = parser.parse_args()
    folder = arguments.out / f"{arguments.files}-{arguments.size}"
    archive, cache = folder.with_suffix(".zip"), folder.with_suffix(".cache")
    if not archive.exists():
        write_pictures(folder, arguments.files, arguments.size)
        write_zip(archive, folder)
    shutil.rmtree(cache, ignore_errors=True)
    for spec in (f"folder:{folder}", f"zip:{archive}"):
        start = functools.partial(load, spec, arguments.size, str(cache))
        for text, prepare, work in [
            ("list", nothing, functools.partial(list_files, spec)),
            ("inspect headers", functools.partial(opened, spec), inspect),
            ("load, decoding", nothing, start),
            ("load, from the cache", nothing, start),
        ]:
            seconds, size = in_a_process(prepare, work)
            held = "" if size is None else f"{size / 1e6:9.0f} MB"
            print(f"{spec.partition(':')[0]:8}{text:22}{seconds:8.2f} s{held}", flush=True)


if __name__ == "__main__":
    main()
