"""How do time and memory grow with the size of the images, the network, the batch, T, the data and the machines?

    .venv/bin/python benchmarks/speed/growth.py
    .venv/bin/python benchmarks/speed/growth.py --axes=width,batch

One thing at a time differs from a small network (width 32, multipliers 1, 1, 2, 2, batch 8 of 32x32x3). Each point is a
training step in a process of its own, whose memory is its high-water mark. Dashed in the figure is what the operations
of the network, counted by PyTorch, would take at the rate of the best point. Workers are `train.py` under
`kddpm.local_cluster`: two runs of different length, and the difference between them. Bits per dimension have all terms.
"""

import statistics
import subprocess
import sys
import tempfile
import time

import cases
import contestants
import report
import results
from absl import flags

from kddpm.cli import commands

AXES = {
    "image_size": (8, 16, 32, 64, 128),
    "width": (16, 32, 64, 128),
    "batch_size": (2, 8, 32, 128),
    "num_timesteps": (100, 1000, 10_000),
    "images": (1000, 10_000, 100_000, 1_000_000),
    "replicas": (1, 2, 4),
}
BASE = {
    "image_size": 32, "width": 32, "multipliers": (1, 1, 2, 2), "attention_resolutions": (), "batch_size": 8,
    "precision": "float32", "jit_compile": False,
}  # fmt: skip
BITS = {"digits": 16, "mnist": 4, "mobile32": 4}  # images
STEPS = (50, 250)  # of the two runs of workers
ALL, QUICK = [*AXES, "workers", "bits"], ["width", "bits"]
CHOSEN = flags.DEFINE_list("axes", None, f"what to vary, among {', '.join(ALL)}; all if not given")
FIGURE = "growth.png"


def point(axis, value, seconds, rounds):
    """Images/s and memory of one point."""
    overrides, options = {**BASE, "num_timesteps": 1000}, {"replicas": 1, "images": 1000}
    (options if axis in options else overrides)[axis] = value
    if axis == "images":
        overrides["image_size"] = 8  # a million of these are 0.2 GB
    with contestants.Contestant(f"{axis} {value}", sys.executable, "input_worker.py") as it:
        it.ask("prepare_replicas", preset="mobile32", overrides=overrides, **options)
        steps = max(2, round(seconds * it.ask("train", steps=2) / overrides["batch_size"]))
        rates = [it.ask("train", steps=steps) for _ in range(rounds)]
        peak = it.ask("peak_gib")
    batch = overrides["batch_size"]
    row = {"axis": axis, "value": value, "ms": [1e3 * batch / rate for rate in rates], "peak_gib": peak, "batch": batch}
    print(f"  {axis:14s}{value:10,d}{report.spread(row['ms']):>28s} ms a step   {peak:5.2f} GiB", flush=True)
    return row | {"network": {name: overrides[name] for name in ("image_size", "width")}}


def workers(count):
    """Milliseconds of a step of `digits` with that many workers on this machine."""
    seconds = []
    for steps in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *(["-m", "kddpm.local_cluster", f"--workers={count}"] if count > 1 else [])]
            command += ["train.py", f"--strategy={'multi_worker' if count > 1 else 'one'}", f"--steps={steps}"]
            command += ["--preset=digits", "--sampler=ddim", "--sampling_steps=1", f"--run_dir={folder}/run"]
            start = time.perf_counter()
            done = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True)
            seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise contestants.Failure(f"{count} workers: {(done.stderr.strip().splitlines() or [''])[-1]}")
    ms = 1e3 * (seconds[1] - seconds[0]) / (STEPS[1] - STEPS[0])
    print(f"  workers {count}: {ms:.1f} ms a step", flush=True)
    return {"axis": "workers", "value": count, "ms": [ms]}


def bits(case, images):
    """Seconds of the bits per dimension of an image."""
    with contestants.Contestant(case.name, sys.executable, "input_worker.py") as it:
        found = it.ask("bits_seconds", images=images, **cases.described(case, cases.FORMS["kddpm"]))
    print(f"  bits per dimension, {case.name}: {found:.2f} s an image", flush=True)
    return {"case": case.name, "seconds": found, "terms": case.config().num_timesteps}


def count_operations(rows, python):
    """Add to the rows the operations of a forward pass of the network at batch 1."""
    groups = {16: 4, 32: 8, 64: 16, 128: 32}
    same = {"multipliers": BASE["multipliers"], "blocks_per_level": 1, "attention_resolutions": ()}
    with cases.start(cases.FORMS["PyTorch float32"], python) as counter:
        for row in rows:
            size, width = row["network"]["image_size"], row["network"]["width"]
            architecture = {"image_shape": (size, size, 3), "width": width, "groups": groups[width], **same}
            row["operations"] = counter.ask("operations", architecture=architecture)


def expected_ms(rows):
    """Milliseconds of each point's operations at the rate of the best point; a step is three forward passes."""
    work = [3 * row["operations"] * row["batch"] for row in rows]
    best = max(count / statistics.median(row["ms"]) for count, row in zip(work, rows, strict=True))
    return [count / best for count in work]


def draw(rows, path):
    """A panel for each axis: time above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = report.order(row["axis"] for row in rows)
    layout = {"squeeze": False, "sharey": "row", "layout": "constrained"}
    figure, panels = pyplot.subplots(2, len(axes), figsize=(2.2 * len(axes), 4.2), **layout)
    for column, axis in enumerate(axes):
        here = [row for row in rows if row["axis"] == axis]
        values, (time_panel, memory_panel) = [row["value"] for row in here], panels[:, column]
        medians = [statistics.median(row["ms"]) for row in here]
        time_panel.plot(values, medians, "o-", color="tab:blue", label="measured")
        if "operations" in here[0]:
            time_panel.plot(values, expected_ms(here), "--", color="tab:gray", label="operations")
        time_panel.set(xscale="log", yscale="log", title=axis.replace("_", " "))
        if "peak_gib" in here[0]:
            memory_panel.plot(values, [row["peak_gib"] for row in here], "s-", color="tab:orange")
            memory_panel.set(xscale="log")
        for panel in (time_panel, memory_panel):
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        memory_panel.set_visible("peak_gib" in here[0])
    panels[0, 0].set_ylabel("ms a training step")
    panels[1, 0].set(ylabel="peak memory, GiB", ylim=(0, 1.1 * max(row.get("peak_gib", 0) for row in rows)))
    panels[0, 0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def measure():
    """The question's figures, and the figure beside the JSON file."""
    chosen = CHOSEN.value or (QUICK if results.QUICK.value else ALL)
    commands.check_among("axes", chosen, ALL)
    rounds, seconds, rows = results.rounds(3), results.seconds(1.0), []
    for axis in [axis for axis in AXES if axis in chosen]:
        values = AXES[axis][:2] if results.QUICK.value else AXES[axis]
        rows += [point(axis, value, seconds, rounds) for value in values]
    count_operations(rows, results.python())
    if "workers" in chosen:
        rows += [workers(count) for count in (1, 2)]
    found = {"rows": rows, "bits": []}
    if "bits" in chosen:
        found["bits"] = [bits(case, BITS[case.name]) for case in results.chosen_cases(*BITS) if case.name in BITS]
    draw(rows, results.json_path().parent / "figures" / FIGURE)
    return found


if __name__ == "__main__":
    commands.run(lambda: results.run("growth", measure))
