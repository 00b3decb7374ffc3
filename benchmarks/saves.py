"""What checkpoints cost: a save beside training steps of the same model, in turns.

    .venv/bin/python benchmarks/saves.py
    .venv/bin/python benchmarks/saves.py --presets=ddpm32 --rounds=2 --batch_size=8

Prints milliseconds of a save (all variables of training, the averaged weights, hashes) and of a step, and the share of
the time that saves take at the interval of the preset.
"""

import argparse
import gc
import pathlib
import tempfile
import time

import keras
import numpy as np

from kddpm.runs import build, checkpoints, directory, fingerprint, presets, snapshots

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "mobile32": (32, 32, 3), "ddpm32": (32, 32, 3)}


def measure(name, folder, arguments):
    """Milliseconds of each save and of each step, and the bytes of a checkpoint with the averaged weights."""
    config = presets.make_config(name, num_classes=None)
    batch = arguments.batch_size or config.batch_size
    run = directory.RunDirectory(folder / name)
    about = {"source": "noise", "digest": "", "images": batch, "image_shape": list(SHAPES[name]), "class_names": []}
    run.write(config, about)
    model = build.build_model(config, SHAPES[name])
    model.compile(keras.optimizers.Adam(config.learning_rate), jit_compile=config.jit_compile)
    images = np.random.default_rng(0).integers(0, 256, (batch, *SHAPES[name]), np.uint8)
    others = snapshots.Averages(model.network).variables if config.snapshot_every else []
    saver = checkpoints.Checkpoints(run, model, fingerprint.of_this_process(config.jit_compile), print, others)

    def seconds(call, *values):
        began = time.perf_counter()
        call(*values)
        return time.perf_counter() - began

    seconds(model.train_on_batch, images)  # compiles
    saves, steps = [], []
    for number in range(1, arguments.rounds + 1):
        steps += [seconds(model.train_on_batch, images) for _ in range(arguments.steps)]
        saves.append(seconds(saver.save, number, 1.0))
    size = sum(path.stat().st_size for path in [*run.checkpoints_path.glob(f"*{number}.*"), run.weights_path])
    return 1e3 * np.array(saves), 1e3 * np.array(steps), size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--presets", default="digits,mnist", help=f"of {', '.join(SHAPES)}, separated by commas")
    parser.add_argument("--rounds", type=int, default=9, help="saves of each")
    parser.add_argument("--steps", type=int, default=20, help="training steps between two saves")
    parser.add_argument("--batch_size", type=int, default=None, help="in place of the preset's")
    arguments = parser.parse_args()
    print("| preset | batch | checkpoint, MB | a save, ms | a step, ms | every | share of the time |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.presets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            saves, steps, size = measure(name, pathlib.Path(folder), arguments)
        config = presets.make_config(name)
        save, step = np.median(saves), np.median(steps)
        share = save / (save + config.checkpoint_every * step)
        spread = " ({:.0f} to {:.0f})".format
        print(
            f"| `{name}` | {arguments.batch_size or config.batch_size} | {size / 1e6:.1f} | "
            f"{save:.0f}{spread(saves.min(), saves.max())} | {step:.0f}{spread(steps.min(), steps.max())} | "
            f"{config.checkpoint_every} | {100 * share:.2f} % |",
            flush=True,
        )
        keras.backend.clear_session()
        gc.collect()


if __name__ == "__main__":
    main()
