"""Does a run that is killed over and over end with the bits of one that is not?

    .venv/bin/python benchmarks/faults.py --out=/tmp/faults
    .venv/bin/python benchmarks/faults.py --out=/tmp/faults --kills=40 -- --precision=mixed_bfloat16 --horizontal_flip

Trains `digits` in one go, and again under SIGKILL: at random moments, and every other time while a checkpoint is being
written. Then compares every variable of training, the averaged weights and metrics.csv. What follows -- are flags of
train.py for both.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
EVERY = 25  # steps to a checkpoint
SETTINGS = ["--preset=digits", f"--checkpoint_every={EVERY}", "--log_every=7", "--sample_every=1000000"]


def command(run_dir, arguments):
    """How both runs are started."""
    flags = [*SETTINGS, f"--steps={arguments.steps}", f"--run_dir={run_dir}", *arguments.flags]
    return [sys.executable, ROOT / "train.py", *flags]


def half_written(run_dir):
    """What a save is writing, or was when a kill came; `kddpm.base.files.replacing` makes a folder for each."""
    found = set()
    for pattern in ("checkpoints/.part-*/step_*", ".part-*/ema.weights.*"):
        with contextlib.suppress(FileNotFoundError):  # of a folder that is gone by the time it is read
            found.update(run_dir.glob(pattern))
    return found


def train(run_dir, arguments):
    """Train in one go; seconds until the first checkpoint, and on average from one to the next."""
    process = subprocess.Popen(command(run_dir, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    begun = time.monotonic()
    while process.poll() is None and not list(run_dir.glob("checkpoints/*.json")):
        time.sleep(0.1)
    first = time.monotonic()
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(f"Training ended with {process.returncode}: {errors.decode()[-500:]}")
    return first - begun, (time.monotonic() - first) * EVERY / arguments.steps


def killed(run_dir, arguments, chance, pace, within_a_save):
    """Start training and kill it, within a save or anywhere; what happened, or None where it ended."""
    process = subprocess.Popen(
        command(run_dir, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    begun, to_first, to_next = newest(run_dir), *pace
    # Anywhere: every other time on the way to the first save, else within the next three.
    late = chance.random() < 0.5
    moment = None if late else time.monotonic() + chance.uniform(0, to_first)
    saves = chance.randint(1, 2)  # in which of the coming saves to strike
    old, seen = half_written(run_dir), set()
    while process.poll() is None:
        if within_a_save:
            now = half_written(run_dir) - old
            seen |= now
            if now and len(seen) > 4 * (saves - 1):  # a save writes four files
                break
        elif moment is None and newest(run_dir) != begun:
            moment = time.monotonic() + chance.uniform(0, 3 * to_next)
        elif moment is not None and time.monotonic() > moment:
            break
        time.sleep(0.0002 if within_a_save else 0.01)
    if process.poll() is not None:
        return None if process.returncode == 0 else f"ended with {process.returncode}: {process.stderr.read()[-500:]}"
    process.kill()
    process.wait()
    where = "within a save" if within_a_save else "anywhere"
    return f"killed {where}; the newest checkpoint: {begun} before, {newest(run_dir)} after"


def newest(run_dir):
    """Name of the newest checkpoint, "none" where there is none."""
    return max((path.stem for path in run_dir.glob("checkpoints/*.json")), default="none")


def result_of(run_dir):
    """{what: sha256} of everything that training leaves."""
    step = newest(run_dir)
    variables, averages = hashlib.sha256(), hashlib.sha256()
    with np.load(run_dir / "checkpoints" / f"{step}.npz") as archive:
        for name in sorted(archive.files):
            variables.update(name.encode() + archive[name].tobytes())
    with h5py.File(run_dir / "ema.weights.h5") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in sorted(names):
            averages.update(name.encode() + file[name][()].tobytes())
    return {
        "step": step,
        "weights, averages, optimizer and step": variables.hexdigest(),
        "ema.weights.h5": averages.hexdigest(),
        "metrics.csv": hashlib.sha256((run_dir / "metrics.csv").read_bytes()).hexdigest(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out",
        type=lambda path: pathlib.Path(path).expanduser(),
        required=True,
        help="folder for both runs; made anew",
    )
    parser.add_argument("--kills", type=int, default=20, help="how often to kill")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("flags", nargs="*", help="of train.py, after --")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    straight, broken = arguments.out / "straight", arguments.out / "killed"
    pace = train(straight, arguments)
    chance, kills = random.Random(arguments.seed), 0
    while kills < arguments.kills:
        what = killed(broken, arguments, chance, pace, within_a_save=kills % 2 == 1)
        if what is None:
            sys.exit(f"The run ended after {kills} kills: give it more --steps")
        if not what.startswith("killed"):
            sys.exit(f"After {kills} kills training {what}")
        kills += 1
        print(f"{kills:3d} {what}", flush=True)
    train(broken, arguments)
    expected, received = result_of(straight), result_of(broken)
    print(json.dumps({"in one go": expected, f"after {kills} kills": received}, indent=2))
    same = expected == received
    print(f"{kills} kills survived; the bits are {'the same' if same else 'NOT the same'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
