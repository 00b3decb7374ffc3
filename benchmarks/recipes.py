"""Which recipe of training paints best for its cost? One thing at a time differs, at equal wall time on the same cores.

    .venv/bin/python benchmarks/recipes.py --out=/tmp/recipes --data=mnist.npz             # every row, ten minutes each
    .venv/bin/python benchmarks/recipes.py --out=/tmp/recipes --data=mnist.npz '--rows=v;laplace' --minutes=30
    .venv/bin/python benchmarks/recipes.py --out=/tmp/recipes --data=mnist.npz --rows=v --steps=3800 --seed=1
    .venv/bin/python benchmarks/recipes.py --out=/tmp/recipes --table                      # what is there, as Markdown
    .venv/bin/python benchmarks/recipes.py --out=/tmp/recipes --preset=cifar32 --data=cifar.npz --extractor=cifar_judge

`--data` is an archive of x_train, y_train, x_test and y_test. A row is trained in a process of its own for as many
steps as its minutes hold, start and compilation included: a short run beforehand measures how many, unless `--steps`
says it. Then `evaluate.py` compares `--num_images` pictures with the training images, in the features of `--extractor`
or of the one that comes with kddpm, and measures the bits per dimension of test images. What is there already is not
made again. Nothing else may run on the cores meanwhile.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the project beside this script, installed or not

SETTLED, MEASURED = 20, 80  # steps of the short run: those before the clock starts, and those that it counts
STARTED = "RECIPES_STARTED"  # when the process of a row was started, in its environment
# The preset `mnist` as it was when these measurements began.
BEFORE = {"prediction": "eps", "num_classes": None, "learning_rate": 1e-3, "learning_rate_decay": "none"}
FAST = {"precision": "mixed_bfloat16"}
# What the rows change one thing of, and what they led to.
BASE = BEFORE | FAST | {"learning_rate_decay": "cosine"}
BEST = BASE | {"prediction": "v", "learning_rate": 2e-3, "num_classes": 10}
JUDGED = ("data", "sampler", "num_images", "extractor")  # flags that the figures of a row depend on, kept with them
QUIET = {"log_every": 50, "sample_every": 10**9, "checkpoint_every": 10**9}


@dataclasses.dataclass(frozen=True)
class Row:
    """A recipe: fields of `TrainConfig` that differ from the preset's, and what the package has no field for.

    An image has the nearest of so many `candidates` of its noise (Li et al. 2024).
    """

    overrides: dict
    patch: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    candidates: int = 1


def optimizer(make):
    """Let the model be compiled with `make(learning rate)`."""
    import keras

    return mock.patch.object(keras.optimizers, "Adam", make)


def adamw():
    import keras

    return optimizer(lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.01))


def muon():
    """Muon for the matrices of two dimensions; it leaves convolutions to AdamW (Jordan et al. 2024)."""
    import keras

    return optimizer(lambda rate: keras.optimizers.Muon(rate))


def small_labels():
    """Begin with embeddings of labels from U(-0.05, 0.05), as Keras has it, instead of N(0, 1)."""
    from keras import initializers

    small = initializers.RandomUniform(-0.05, 0.05)
    return mock.patch.object(initializers, "RandomNormal", lambda **options: small)


def laplace():
    """Draw lambda = log SNR from a Laplace distribution of mean 0 and scale 0.5 (Hang et al. 2024, table 1)."""
    from kddpm.theory import timesteps

    def probabilities(schedule):
        log_snr = -2 * schedule.log_sigmas
        borders = (log_snr[1:] + log_snr[:-1]) / 2  # they fall with t
        above = np.where(borders > 0, 0.5 * np.exp(-np.abs(borders) / 0.5), 1 - 0.5 * np.exp(-np.abs(borders) / 0.5))
        return np.diff(above, prepend=0.0, append=1.0)

    return mock.patch.object(timesteps, "log_normal_probabilities", probabilities)


def immiscible(candidates):
    """Give each image the nearest of so many draws of its noise (Li et al. 2024)."""
    import tensorflow as tf

    from kddpm.model import draws

    draw = draws.draw

    def nearest(seed, step, x_0, *arguments, **options):
        drawn = draw(seed, step, x_0, *arguments, **options)
        key = tf.random.experimental.stateless_fold_in(tf.constant([seed, 1], tf.int32), step)
        others = tf.random.stateless_normal([candidates - 1, *x_0.shape], key)
        noises = tf.concat([drawn.noise[tf.newaxis], others], axis=0)
        apart = tf.reduce_sum(tf.square(noises - x_0), axis=[2, 3, 4])  # (candidates, B)
        chosen = tf.gather(tf.transpose(noises, [1, 0, 2, 3, 4]), tf.argmin(apart), batch_dims=1)
        return drawn._replace(noise=chosen)

    return mock.patch.object(draws, "draw", nearest)


# All but `preset`, with classes and without, and `before` differ from `base` in what their name says.
MNIST = {
    "preset": Row({}),
    "preset, no classes": Row({"num_classes": None}),
    "before": Row(BEFORE | FAST),
    "base": Row(BASE),
    "v": Row(BASE | {"prediction": "v"}),
    "edm, log_normal": Row(BASE | {"prediction": "edm", "timestep_sampling": "log_normal"}),
    "log_normal": Row(BASE | {"timestep_sampling": "log_normal"}),
    "laplace": Row(BASE | {"timestep_sampling": "log_normal"}, laplace),
    "stratified": Row(BASE | {"timestep_sampling": "stratified"}),
    "min_snr": Row(BASE | {"weighting": "min_snr"}),
    "immiscible": Row(BASE, candidates=4),
    "rate 2e-3": Row(BASE | {"learning_rate": 2e-3}),
    "rate 5e-4": Row(BASE | {"learning_rate": 5e-4}),
    "batch 32": Row(BASE | {"batch_size": 32}),
    "batch 128": Row(BASE | {"batch_size": 128}),
    "width 24": Row(BASE | {"width": 24}),
    "width 48": Row(BASE | {"width": 48}),
    "dropout 0": Row(BASE | {"dropout": 0.0}),
    "average 0.999": Row(BASE | {"ema_momentum": 0.999}),
    "levels 1, 2, 4": Row(BASE | {"multipliers": (1, 2, 4)}),
    "width 16, levels 1, 4, 8": Row(BASE | {"width": 16, "multipliers": (1, 4, 8)}),
    "classes": Row(BASE | {"num_classes": 10}),
    "classes, small": Row(BASE | {"num_classes": 10}, small_labels),
    "adamw": Row(BASE, adamw),
    "muon": Row(BASE, muon),
    "v, rate 2e-3": Row(BASE | {"prediction": "v", "learning_rate": 2e-3}),
    "v, rate 2e-3, width 16, levels 1, 4, 8": Row(
        BASE | {"prediction": "v", "learning_rate": 2e-3, "width": 16, "multipliers": (1, 4, 8)}
    ),
    "v, rate 2e-3, classes": Row(BEST),
    "v, rate 2e-3, classes, stratified": Row(BEST | {"timestep_sampling": "stratified"}),
    "v, rate 2e-3, classes, log_normal": Row(BEST | {"timestep_sampling": "log_normal"}),
    "v, rate 2e-3, classes, laplace": Row(BEST | {"timestep_sampling": "log_normal"}, laplace),
    "v, rate 2e-3, classes, min_snr": Row(BEST | {"weighting": "min_snr"}),
    "v, rate 2e-3, classes, immiscible": Row(BEST, candidates=4),
    "v, rate 2e-3, classes, muon": Row(BEST, muon),
    "v, rate 2e-3, classes, width 48": Row(BEST | {"width": 48}),
    "v, rate 2e-3, classes, dropout 0": Row(BEST | {"dropout": 0.0}),
    "v, rate 4e-3, classes": Row(BEST | {"learning_rate": 4e-3}),
    "edm, rate 2e-3, classes": Row(BEST | {"prediction": "edm"}),
    "velocity, rate 2e-3, classes": Row(BEST | {"prediction": "velocity"}),
}
# All differ from the preset in what their name says, and in the precision.
CIFAR = {
    "bfloat16": Row(FAST),
    "rate 5e-4": Row(FAST | {"learning_rate": 5e-4}),
    "rate 2e-3": Row(FAST | {"learning_rate": 2e-3}),
    "eps": Row(FAST | {"prediction": "eps"}),
    "edm": Row(FAST | {"prediction": "edm"}),
    "no classes": Row(FAST | {"num_classes": None}),
    "min_snr": Row(FAST | {"weighting": "min_snr"}),
    "width 32, levels 1, 2, 4": Row(FAST | {"width": 32, "multipliers": (1, 2, 4)}),
    "width 64, two blocks": Row(
        FAST | {"width": 64, "multipliers": (1, 2, 2), "blocks_per_level": 2, "attention_resolutions": (16,)}
    ),
}
ROWS = {"mnist": MNIST, "cifar32": CIFAR}


def train(row, config, run_dir):
    """Train a row in this process; returns when each step ended, in seconds since it was started."""
    from kddpm.cli import commands
    from kddpm.distribution import cores

    began = float(os.environ[STARTED])
    commands.start_tensorflow()
    cores.divide_batches(config.batch_size)
    import keras

    from kddpm.runs import training

    ends = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.time() - began))
    noise = immiscible(row.candidates) if row.candidates > 1 else contextlib.nullcontext()
    with row.patch(), noise:
        training.train(config, run_dir, callbacks=[clock])
    return ends


def in_child(arguments, name, run_dir, steps):
    """Train a row in a process of its own; returns when each step ended, in seconds since the process was started."""
    shutil.rmtree(run_dir, ignore_errors=True)  # what was interrupted begins anew, as its minutes do
    command = [sys.executable, __file__, f"--out={arguments.out}", f"--data={arguments.data}", f"--rows={name}"]
    command += [f"--preset={arguments.preset}", f"--seed={arguments.seed}", f"--steps={steps}", f"--run_dir={run_dir}"]
    subprocess.run(command, check=True, env={**os.environ, STARTED: str(time.time())})
    return json.loads((run_dir / "ends.json").read_text())


def child(arguments):
    """What `in_child` starts."""
    from kddpm.runs import presets

    (name,) = arguments.rows
    row, run_dir = ROWS[arguments.preset][name], arguments.run_dir
    overrides = QUIET | {"dataset": f"npz:{arguments.data}", "steps": arguments.steps, "seed": arguments.seed}
    ends = train(row, presets.make_config(arguments.preset, **overrides | row.overrides), run_dir)
    (run_dir / "ends.json").write_text(json.dumps(ends))


def steps_in(seconds, ends):
    """How many steps a run holds whose short run ended its steps then."""
    each = (ends[-1] - ends[SETTLED - 1]) / (len(ends) - SETTLED)
    return int((seconds - ends[SETTLED - 1]) / each) + SETTLED


def evaluate(arguments, run_dir):
    """{figure: value} of a row's pictures and of the test set's bits."""
    test, found = arguments.out / "test.npz", {}
    pictures = ["--metrics=fid,accuracy", f"--samplers={arguments.sampler}", f"--num_images={arguments.num_images}"]
    pictures += [f"--extractor={arguments.extractor}"] if arguments.extractor else []
    bits = ["--metrics=bits_per_dim", f"--dataset=npz:{test}", "--max_images=500", "--num_terms=32"]
    for name, flags in (("pictures", [*pictures, f"--held_out=npz:{test}"]), ("bits", bits)):
        out = run_dir / name
        command = [sys.executable, ROOT / "evaluate.py", f"--run_dir={run_dir}", f"--out={out}", *flags]
        subprocess.run(command, check=True)
        found[name] = json.loads((out / {"pictures": "quality.json", "bits": "bits_per_dim.json"}[name]).read_text())
    floor, row = found["pictures"]["rows"]
    return {"floor": floor, "pictures": row, "bits": found["bits"]}


def measure(arguments, name):
    """Train and judge one row, unless its figures are there."""
    path = place(arguments, name)
    if path.exists():
        return
    ends = trained(arguments, name, path.parent)
    row = {"name": name, "minutes": arguments.minutes, "seed": arguments.seed, "steps": len(ends), "seconds": ends[-1]}
    path.write_text(json.dumps(row | asked(arguments) | evaluate(arguments, path.parent / "run")))


def place(arguments, name):
    """Where the figures of a row are."""
    return arguments.out / f"{arguments.preset}-{file_name(name)}-{budget(arguments)}-{arguments.seed}" / "row.json"


def budget(arguments):
    """What a row may take, in the name of its folder: its minutes, or its steps."""
    return f"{arguments.steps}steps" if arguments.steps else f"{arguments.minutes:g}"


def asked(arguments):
    """What the figures of a row depend on besides its place."""
    return {key: str(getattr(arguments, key)) for key in JUDGED}


def check_kept(arguments):
    """End with a line where the figures of a row are there, and were measured otherwise."""
    for path in (place(arguments, name) for name in arguments.rows or ROWS[arguments.preset]):
        before, now = json.loads(path.read_text()) if path.exists() else {}, asked(arguments)
        if other := [key for key in JUDGED if before.get(key, now[key]) != now[key]]:
            sys.exit(f"recipes.py: {path} was made with another --{', --'.join(other)}; name another --out")


def trained(arguments, name, folder):
    """Train a row for its budget, unless that is done; returns when each step ended, in seconds from the start."""
    done = folder / "run" / "ends.json"
    if done.exists():
        return json.loads(done.read_text())
    steps = arguments.steps
    if not steps:
        steps = steps_in(60 * arguments.minutes, in_child(arguments, name, folder / "short", SETTLED + MEASURED))
    return in_child(arguments, name, folder / "run", steps)


def write_test(arguments):
    """Write the test images as an archive of their own; returns its path."""
    path = arguments.out / "test.npz"
    with np.load(arguments.data) as arrays:
        np.savez(path, images=arrays["x_test"], labels=arrays["y_test"])
    return path


def file_name(name):
    """The name of a row without what file names had better not have."""
    return name.replace(", ", "_").replace(" ", "_")


def table(arguments):
    """Print the rows that are there."""
    rows = [json.loads(path.read_text()) for path in sorted(arguments.out.glob(f"{arguments.preset}-*/row.json"))]
    if len({tuple(row.get(key, "") for key in JUDGED) for row in rows}) > 1:
        print(f"Not all rows were measured with the same --{', --'.join(JUDGED)}:")
    order = list(ROWS[arguments.preset])
    rows.sort(key=lambda row: (row["minutes"], order.index(row["name"]), row["seed"]))
    print("| recipe | minutes | seed | steps | Fréchet | named, % | of its class, % | bits/dim |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        pictures, bits = row["pictures"], row["bits"]
        right = f"{100 * pictures['accuracy']:.1f}" if "accuracy" in pictures else ""
        print(
            f"| {row['name']} | {row['seconds'] / 60:.1f} | {row['seed']} | {row['steps']:,} "
            f"| {pictures['frechet']:.2f} ± {pictures['frechet_standard_error']:.2f} "
            f"| {100 * pictures['named']:.1f} | {right} | {bits['total']:.3f} ± {bits['standard_error']:.3f} |"
        )
    if rows:
        floor = rows[0]["floor"]
        print(f"| real pictures | | | | {floor['frechet']:.2f} | {100 * floor['named']:.1f} | | |")


def parsed():
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    path = {"type": lambda given: pathlib.Path(given).expanduser().resolve(), "metavar": "PATH"}
    parser.add_argument("--out", **path, required=True, help="folder of the runs and their figures")
    parser.add_argument("--data", **path, help="archive of the training and the test images")
    parser.add_argument("--rows", type=lambda text: text.split(";"), help="which, between semicolons; all if not given")
    parser.add_argument("--minutes", type=float, default=10, help="of each row (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each row, in place of those that its minutes hold")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--preset", choices=ROWS, default="mnist", help="whose rows (%(default)s)")
    parser.add_argument("--sampler", default="ddim:50", help="and its steps, of the pictures (%(default)s)")
    parser.add_argument("--num_images", type=int, default=2000, help="to paint (%(default)s)")
    parser.add_argument("--extractor", help="whose features judge them, as in evaluate.py; what fits if not given")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--run_dir", **path, help=argparse.SUPPRESS)  # of the process that trains
    arguments = parser.parse_args()
    names = ROWS[arguments.preset]
    if unknown := [name for name in arguments.rows or () if name not in names]:
        parser.error(f"--rows must be among {'; '.join(names)}. Received: {'; '.join(unknown)}")
    if not 0 < arguments.minutes < float("inf") or arguments.num_images < 20:
        parser.error("--minutes must be above 0, and --num_images at least 20")
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps must be at least 1. Received: {arguments.steps}")
    if not (arguments.table or (arguments.data and arguments.data.is_file())):
        parser.error(f"--data must be an archive of images. Received: {arguments.data}")
    return arguments


def main():
    arguments = parsed()
    if arguments.run_dir:
        return child(arguments)
    if not arguments.table:
        check_kept(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_test(arguments)
        for name in arguments.rows or ROWS[arguments.preset]:
            measure(arguments, name)
    return table(arguments)


if __name__ == "__main__":
    main()
