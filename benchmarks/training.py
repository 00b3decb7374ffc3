"""Training speed of the presets, beside the same networks made of Keras's own layers.

    .venv/bin/python benchmarks/training.py --presets=digits,mnist,mobile32 --rounds=5

Each variant lives in a process of its own and they take turns, A B A B ..., so that a machine that slows down slows
both. Printed are images/s (median over the rounds, smallest to largest), the ratio round by round, seconds from the
start of the process to the end of the first step, and peak memory. "stock" is the preset's network with
keras.layers.GroupNormalization, UpSampling2D followed by Conv2D, and keras.layers.Dropout.
"""

import argparse
import json
import multiprocessing
import pathlib
import platform
import resource
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

BATCH_SIZES = {"mobile32": 32, "ddpm32": 8}  # smaller than the preset's, so that a step fits a small machine's patience


def use_stock_layers():
    """Put Keras's own layers where kddpm's own stand."""
    import keras

    from kddpm.networks import layers, unet

    class StockGroupNormalization(keras.layers.GroupNormalization):
        def __init__(self, groups=32, epsilon=1e-6, **kwargs):
            super().__init__(groups=groups, epsilon=epsilon, **kwargs)

    class StockUpsample(keras.layers.Layer):
        def build(self, input_shape):
            self.resize = keras.layers.UpSampling2D(2)
            self.conv = keras.layers.Conv2D(input_shape[-1], 3, padding="same", dtype=self.dtype_policy)
            self.conv.build(input_shape)

        def call(self, x):
            return self.conv(self.resize(x))

        def compute_output_shape(self, input_shape):
            batch, height, width, channels = input_shape
            return (batch, 2 * height, 2 * width, channels)

    class StockDropout(keras.layers.Dropout):
        def call(self, x, seed=None, training=False):
            return super().call(x, training=training)

    layers.GroupNormalization = unet.GroupNormalization = StockGroupNormalization
    unet.Upsample = StockUpsample
    layers.Dropout = StockDropout


def worker(pipe, started, preset, stock, overrides):
    """Build, take the first step, then run as many steps as the parent asks for."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from kddpm import data
    from kddpm.runs import build, presets

    class StepClock(keras.callbacks.Callback):
        """When each step ended: between the first and the last there is nothing of what `fit` does around them."""

        def __init__(self):
            super().__init__()
            self.ends = []

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())

    if stock:
        use_stock_layers()
    config = presets.make_config(preset, **overrides)
    shape = (*config.image_size, config.channels)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * config.batch_size, *shape), np.uint8)
    model = build.build_model(config, shape)
    model.compile(keras.optimizers.Adam(config.learning_rate), jit_compile=config.jit_compile)
    batches = data.batches(data.ImageData(pixels, None, (), "random", ""), config.batch_size, seed=0)
    model.fit(batches, steps_per_epoch=1, verbose=0)
    pipe.send((time.time() - started, model.network.count_params()))
    while (steps := pipe.recv()) is not None:
        clock = StepClock()
        model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[clock])
        pipe.send((steps - 1) * config.batch_size / (clock.ends[-1] - clock.ends[0]))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measure(preset, rounds, seconds, overrides):
    """Both variants of a preset in turns; returns a row of figures for each."""
    context = multiprocessing.get_context("spawn")
    variants = {}
    for name in ("kddpm", "stock"):
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, time.time(), preset, name == "stock", overrides))
        process.start()
        there.close()  # so that a worker that dies ends the wait for it
        first_step, parameters = here.recv()
        here.send(2)
        here.recv()  # not counted: the first steps still allocate
        variants[name] = {"pipe": here, "process": process, "first_step_s": first_step, "rates": []}
    steps = None
    for _ in range(rounds):
        for variant in variants.values():
            if steps is None:
                variant["pipe"].send(3)
                steps = max(3, round(seconds * variant["pipe"].recv() / overrides["batch_size"]))
            variant["pipe"].send(steps)
            variant["rates"].append(variant["pipe"].recv())
    rows = {}
    for name, variant in variants.items():
        variant["pipe"].send(None)
        memory = variant["pipe"].recv()
        variant["process"].join()
        rows[name] = {"rates": variant["rates"], "first_step_s": variant["first_step_s"], "peak_gib": memory}
    ratios = np.divide(rows["kddpm"]["rates"], rows["stock"]["rates"])
    title = f"{preset}, {parameters:,} parameters, batch {overrides['batch_size']}"
    if len(overrides) > 1:
        title += ", " + ", ".join(f"{k}={v}" for k, v in overrides.items() if k != "batch_size")
    print(f"\n{title}")
    for name, row in rows.items():
        low, middle, high = np.quantile(row["rates"], [0, 0.5, 1])
        print(
            f"  {name:6s} {middle:8.1f} images/s ({low:.1f} to {high:.1f})   first step {row['first_step_s']:5.1f} s   "
            f"peak {row['peak_gib']:.2f} GiB"
        )
    print(f"  kddpm over stock {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})", flush=True)
    return {"preset": preset, **overrides, "ratio": ratios.tolist(), **rows}


def main():
    """Flags to `measure`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--presets", default="digits,mnist,mobile32,ddpm32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--precision", default=None, help="float32 or mixed_bfloat16")
    parser.add_argument("--jit_compile", action="store_true", help="compile with XLA")
    parser.add_argument("--json", help="write the figures here as well")
    args = parser.parse_args()

    from kddpm.runs import presets

    print(f"{platform.processor() or platform.machine()}, {multiprocessing.cpu_count()} cores")
    results = []
    for preset in args.presets.split(","):
        overrides = {"batch_size": BATCH_SIZES.get(preset, presets.PRESETS[preset].get("batch_size", 128))}
        if args.precision:
            overrides["precision"] = args.precision
        if args.jit_compile:
            overrides["jit_compile"] = True
        results.append(measure(preset, args.rounds, args.seconds, overrides))
    if args.json:
        pathlib.Path(args.json).expanduser().write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
