"""How fast are images read and put into batches, and does training wait for them?

    .venv/bin/python benchmarks/speed/inputs.py --rounds=5

Every kind of data set: loaded once, as at the start of a run, then gone through in training's order. Training waits as
long as it would save if its batches were there already: one batch, given over and over, says how long. All kinds are
arrays once they are loaded, in memory or, if too large for that, in a memory map, so waiting is measured for these two.
"""

import contextlib
import functools
import pathlib
import statistics
import subprocess
import sys
import tempfile

import cases
import contestants
import numpy as np
import report
import results

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from data import write_pictures, write_zip

from kddpm.cli import commands

SIDE, BATCH = 32, 64
IN_MEMORY, MAPPED = "in memory", "in a memory map"


def write_all(folder, count):
    """Write the same pictures as every kind of data set; returns {kind: arguments of `load`}."""
    pictures, archive, arrays = folder / "pictures", folder / "pictures.zip", folder / "pictures.npz"
    write_pictures(pictures, count, SIDE)
    write_zip(archive, pictures)
    np.savez(arrays, images=np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
    write_tfds(pictures, folder / "tfds")
    specs = {
        "digits": {"dataset": "digits", "image_size": 8},
        "npz": {"dataset": f"npz:{arrays}"},
        "folder": {"dataset": f"folder:{pictures}"},
        "zip": {"dataset": f"zip:{archive}"},
        "tfds": {"dataset": "tfds:pictures", "data_dir": str(folder / "tfds")},
        "folder, memory map": {"dataset": f"folder:{pictures}", "is_mapped": True, "cache_dir": str(folder / "cache")},
    }
    specs["folder, memory map, again"] = specs["folder, memory map"]
    return {kind: {"image_size": SIDE, **arguments} for kind, arguments in specs.items()}


def write_tfds(pictures, data_dir):
    """Write the pictures as a data set of TensorFlow Datasets, in a process of its own: it imports TensorFlow."""
    script = pathlib.Path(__file__).with_name("tfds_pictures.py")
    subprocess.run([sys.executable, script, pictures, data_dir], check=True, capture_output=True)


def kinds(specs, rounds, steps):
    """A row for each kind: images/s to load it, and to go through it."""
    rows = []
    for kind, arguments in specs.items():
        with contestants.Contestant(kind, sys.executable, "input_worker.py") as it:
            loading = it.ask("load", **arguments)
            streaming = [it.ask("stream", batch=BATCH, steps=steps) for _ in range(rounds)]
        rows.append({"kind": kind, "load": loading, "stream": streaming})
        print(f"  {kind:28s} load {loading:10,.0f} images/s, batches {report.spread(streaming):>28s}", flush=True)
    return rows


def waiting(case, specs, rounds, seconds):
    """A row for each place that the images of a case are in: the share of its time that training waits for them."""
    rows = []
    with contextlib.ExitStack() as stack:
        turns = {}
        for place, arguments in specs.items():
            it = stack.enter_context(contestants.Contestant(place, sys.executable, "input_worker.py"))
            it.ask("load", **arguments)
            rate = it.ask("prepare_waiting", **cases.described(case, cases.FORMS["kddpm"]))
            steps = max(3, round(seconds * rate / case.config().batch_size))
            turns[place] = functools.partial(it.ask, "waiting", steps=steps)
        for place, shares in results.in_turns(turns, rounds).items():
            rows.append({"case": case.name, "place": place, "shares": shares})
            print(f"  {case.name}, {place}: waits {100 * statistics.median(shares):.1f} % of the time", flush=True)
    return rows


def measure():
    """The question's figures."""
    rounds, seconds = results.rounds(7), results.seconds(2.0)
    with tempfile.TemporaryDirectory() as name:
        specs = write_all(pathlib.Path(name), 500 if results.QUICK.value else 10_000)
        found = {"rows": kinds(specs, rounds, 50 if results.QUICK.value else 500), "waiting": []}
        places = {"digits": {IN_MEMORY: specs["digits"]}}
        places["mobile32"] = {IN_MEMORY: specs["folder"], MAPPED: specs["folder, memory map"]}
        for case in results.chosen_cases(*places):
            if case.name in places:
                found["waiting"] += waiting(case, places[case.name], rounds, seconds)
    return found


if __name__ == "__main__":
    commands.run(lambda: results.run("inputs", measure))
