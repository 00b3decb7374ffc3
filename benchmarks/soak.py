"""Does a long training run leak memory, files or threads, or slow down?

    .venv/bin/python benchmarks/soak.py --out=/tmp/soak                    # 30 minutes
    .venv/bin/python benchmarks/soak.py --out=/tmp/soak --minutes=2 -- --preset=mnist

Runs train.py on `digits` and looks at its process every few seconds: memory, open files and threads, steps
from metrics.csv. Checkpoints come as often as the preset says, pictures more often. Then draws soak.png and prints a
verdict: memory grows when its slope after the warm-up is above --most_mb_per_hour with 95 % confidence. What follows
-- are flags of train.py.
"""

import argparse
import csv
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import matplotlib
import numpy as np
import psutil

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = ["--preset=digits", "--steps=10000000", "--log_every=20", "--sample_every=500", "--snapshot_every=0"]
WARM_UP, LEAST_WARM_UP = 0.2, 60  # share of the time, and seconds, that count for nothing: the first of everything
SPEED_SECONDS = 15  # steps are known to the last row of metrics.csv only


def steps_done(run_dir):
    """Of the last whole line of metrics.csv."""
    try:
        lines = (run_dir / "metrics.csv").read_text().splitlines()
        return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0
    except (OSError, ValueError):
        return 0


def watch(run_dir, arguments):
    """Train for so many minutes; a row of numbers every few seconds."""
    command = [sys.executable, ROOT / "train.py", *SETTINGS, f"--run_dir={run_dir}", *arguments.flags]
    begun, rows = time.monotonic(), []
    with open(run_dir.parent / "train.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while (seconds := time.monotonic() - begun) < 60 * arguments.minutes:
            time.sleep(arguments.every)
            if process.poll() is not None:
                sys.exit(f"train.py ended with {process.returncode}: {run_dir.parent / 'train.log'}")
            about = psutil.Process(process.pid)
            rows.append({
                "seconds": seconds + arguments.every,
                "memory_mb": about.memory_info().rss / 2**20,
                "files": about.num_fds(),
                "threads": about.num_threads(),
                "steps": steps_done(run_dir),
            })  # fmt: skip
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode != 128 + signal.SIGTERM:
        sys.exit(f"train.py was sent SIGTERM and ended with {process.returncode}: {run_dir.parent / 'train.log'}")
    return rows


def warm_up(rows):
    """Seconds."""
    return max(LEAST_WARM_UP, WARM_UP * rows[-1]["seconds"])


def slope_with_error(x, y, random):
    """Theil and Sen's slope, and half of its 95 % interval: a bootstrap over pieces of the time."""

    def slope(x, y):
        i, j = np.triu_indices(len(x), 1)
        return np.median((y[j] - y[i])[x[j] > x[i]] / (x[j] - x[i])[x[j] > x[i]])

    pieces = np.array_split(np.arange(len(x)), min(20, len(x)))  # neighbours are alike
    drawn = []
    for _ in range(200):
        chosen = np.sort(np.concatenate([pieces[k] for k in random.integers(0, len(pieces), len(pieces))]))
        if x[chosen[0]] < x[chosen[-1]]:
            drawn.append(slope(x[chosen], y[chosen]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return slope(x, y), (high - low) / 2


def steps_per_second(rows):
    """Over stretches of at least SPEED_SECONDS: (seconds, steps/s)."""
    kept = rows[:1]
    for row in rows:
        if row["steps"] > kept[-1]["steps"] and row["seconds"] >= kept[-1]["seconds"] + SPEED_SECONDS:
            kept.append(row)
    seconds, steps = (np.array([row[name] for row in kept], float) for name in ("seconds", "steps"))
    return seconds[1:], np.diff(steps) / np.diff(seconds)


def draw(rows, path):
    """Memory, and steps a second, against time."""
    minutes = np.array([row["seconds"] for row in rows]) / 60
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, constrained_layout=True)
    above.plot(minutes, [row["memory_mb"] for row in rows])
    above.set_ylabel("resident memory, MB")
    seconds, speed = steps_per_second(rows)
    below.plot(seconds / 60, speed, ".")
    below.set_ylabel("steps/s")
    below.set_ylim(bottom=0)
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.axvspan(0, warm_up(rows) / 60, color="0.9")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out",
        type=lambda path: pathlib.Path(path).expanduser(),
        required=True,
        help="folder for the run and the figure; made anew",
    )
    parser.add_argument("--minutes", type=float, default=30, help="how long to train")
    parser.add_argument("--every", type=float, default=3, help="seconds between two looks")
    parser.add_argument("--most_mb_per_hour", type=float, default=20, help="growth of memory that passes for none")
    parser.add_argument("flags", nargs="*", help="of train.py, after --")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    rows = watch(arguments.out / "run", arguments)
    with open(arguments.out / "soak.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.out / "soak.png")

    steady = [row for row in rows if row["seconds"] > warm_up(rows)]
    third = len(steady) // 3
    first, last = steady[:third], steady[-third:]
    seconds, memory = (np.array([row[name] for row in steady]) for name in ("seconds", "memory_mb"))
    slope, error = slope_with_error(seconds / 3600, memory, np.random.default_rng(0))
    speed = steps_per_second(steady)[1]

    def ends(name, rows=steady):
        return [min(row[name] for row in rows), max(row[name] for row in rows)]

    print(json.dumps({
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "steps": rows[-1]["steps"],
        "memory, MB, first and last": [round(memory[0]), round(memory[-1])],
        "slope, MB/hour": f"{slope:.1f} +- {error:.1f}",
        "steps/s, median of the first and of the last third": [
            round(float(np.median(steps_per_second(part)[1])), 1) for part in (first, last)
        ],
        "steps/s, smallest, median, largest": [round(float(v), 1) for v in np.percentile(speed, [0, 50, 100])],
        "open files, smallest and largest": ends("files"),
        "threads, smallest and largest": ends("threads"),
    }, indent=1))  # fmt: skip
    found = ["memory grows"] if slope - error > arguments.most_mb_per_hour else []
    found += [f"{name} grow in number" for name in ("files", "threads") if ends(name, last)[0] > ends(name, first)[1]]
    print("; ".join(found) or "nothing grows")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
