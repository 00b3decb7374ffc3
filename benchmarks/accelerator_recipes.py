"""The recipes of `recipes.py` on a GPU, under Keras's JAX backend: many rows, and several seeds of each.

    python benchmarks/accelerator_recipes.py --out=/tmp/gpu --data=mnist.npz --steps=3700 --seeds=0,1
    .venv/bin/python benchmarks/accelerator_recipes.py --out=/tmp/gpu --data=mnist.npz --judge --held_out=test.npz

The first wants JAX, Keras and what `kddpm.networks` and `kddpm.data` import, no TensorFlow: each row is trained in a
process of its own, `--workers` of them at a time, for `--steps` steps, and paints `--num_images` by DDIM in 50 steps
from its average.
The step is that of `accelerator_jax.py`: what it draws differs from what `train.py` draws, its distribution does not.
The second wants the project's `.venv`, judges the pictures as `evaluate.py` does, and prints a table: the mean over
the seeds, and half of what lies between the smallest and the largest. What is there already is not made again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the project beside this script, installed or not

import accelerator_jax
import recipes

CHUNK = 50  # steps of one call of the device
PAINTED = 500  # pictures at a time


def path_of(arguments, name, steps, seed):
    """Where the pictures of a row are; `steps` and `seed` may be patterns."""
    return arguments.out / f"{arguments.preset}-{recipes.file_name(name)}-{steps}-{seed}.npz"


def read(path, config):
    """The `ImageData` of an archive or a zip."""
    from kddpm import data

    return data.load(f"{'npz' if path.suffix == '.npz' else 'zip'}:{path}", config.image_size, config.channels)


def config_of(arguments, name):
    """The `TrainConfig` of a row."""
    from kddpm.runs import presets

    given = recipes.QUIET | {"dataset": f"npz:{arguments.data}", "steps": arguments.steps}
    return presets.make_config(arguments.preset, **given | recipes.ROWS[arguments.preset][name].overrides)


def rate_of(config):
    """Up from 0 while it warms up, and down to 0 as a cosine, as `train.py` has it."""
    import keras

    start = {"warmup_target": config.learning_rate, "warmup_steps": config.warmup_steps}
    return keras.optimizers.schedules.CosineDecay(0.0, max(1, config.steps - config.warmup_steps), **start)


def orders_of(config, seed, count):
    """Which images each step takes, int32 (steps, B): one permutation of all after the other."""
    rng, wanted = np.random.default_rng(seed), config.steps * config.batch_size
    orders = np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])
    return orders[:wanted].reshape(config.steps, config.batch_size).astype(np.int32)


def train(arguments, name):
    """Train a row with every seed, and write its pictures."""
    accelerator_jax.use(arguments.device)
    import jax
    import keras
    from jax import numpy as jnp

    row, config = recipes.ROWS[arguments.preset][name], config_of(arguments, name)
    source = read(arguments.data, config)
    images = jnp.asarray(source.images)
    labels = jnp.asarray(source.labels) if config.num_classes else None
    with row.patch():
        optimizer = keras.optimizers.Adam(rate_of(config))
        network = accelerator_jax.network_of(config)
        step = accelerator_jax.training_step(network, optimizer, config, row.candidates)

    @jax.jit
    def chunk(state, orders):
        def one(state, order):
            x_0 = images[order].astype(jnp.float32) / 127.5 - 1
            return step(state, x_0, None if labels is None else labels[order])

        return jax.lax.scan(one, state, orders)

    paint = jax.jit(accelerator_jax.sampler(network, (PAINTED, *network.image_shape)))
    columns = accelerator_jax.columns_of(config, "ddim", 50)
    classes = jnp.arange(PAINTED) % config.num_classes if config.num_classes else None
    for seed in map(int, arguments.seeds):
        path, began = path_of(arguments, name, config.steps, seed), time.time()
        if path.exists():
            continue
        with row.patch():
            keras.utils.set_random_seed(seed)
            weights = [variable.value for variable in accelerator_jax.network_of(config).trainable_variables]
        state = accelerator_jax.first_state(network, optimizer, weights, jax.random.key(seed))
        orders = orders_of(config, seed, len(images))
        for first in range(0, config.steps, CHUNK):
            state, losses = chunk(state, orders[first : first + CHUNK])
        loss, trained = float(losses.mean()), time.time()
        parts = range(arguments.num_images // PAINTED)
        pictures = np.concatenate([paint(state["averages"], *columns, 1000 * seed + k, classes) for k in parts])
        pictures = np.round(np.clip(pictures * 127.5 + 127.5, 0, 255)).astype(np.uint8)
        unfinished = path.with_name(f"unfinished-{path.name}")
        np.savez_compressed(unfinished, images=pictures)
        unfinished.replace(path)
        print(f"{name}, seed {seed}: loss {loss:.4f}, trained in {trained - began:.0f} s, painted in "
              f"{time.time() - trained:.0f} s", flush=True)  # fmt: skip


def run(arguments):
    """Give each row a process, so many at a time, until the time is up."""
    end, waiting, running = time.time() + arguments.seconds, list(arguments.rows), {}
    steps = json.loads(arguments.steps_of.read_text()) if arguments.steps_of else {}
    while waiting or running:
        while waiting and len(running) < arguments.workers and time.time() < end:
            name = waiting.pop(0)
            command = [sys.executable, __file__, f"--out={arguments.out}", f"--data={arguments.data}", "--child"]
            command += [f"--preset={arguments.preset}", f"--steps={steps.get(name, arguments.steps)}"]
            command += [f"--rows={name}", f"--seeds={','.join(arguments.seeds)}"]
            command += [f"--num_images={arguments.num_images}", f"--device={arguments.device}"]
            running[name] = subprocess.Popen(command)
        for name, process in list(running.items()):
            if time.time() > end:
                process.terminate()
            if process.poll() is not None:
                del running[name]
                if process.returncode:
                    print(f"{name} ended with {process.returncode}", flush=True)
        if time.time() > end:
            waiting = []
        time.sleep(0.5)


def judge(arguments):
    """Print the table of what is there."""
    from kddpm.evaluation import features
    from kddpm.runs import judging

    config = config_of(arguments, next(iter(recipes.ROWS[arguments.preset])))
    shape = (*config.image_size, config.channels)
    train_set, test_set = (read(path, config) for path in (arguments.data, arguments.held_out))
    extractor = features.load(arguments.extractor, shape)
    real = judging.split(train_set, test_set, arguments.num_images, 0)
    cache = arguments.out / "features"
    wanted, names = ["fid", "accuracy"], train_set.class_names
    print("| recipe | steps | seeds | Fréchet | named, % | of its class, % |\n|---|---|---|---|---|---|")
    judged = judging.Judge(wanted, extractor, real, len(names), names, 64, cache, False)
    for name in recipes.ROWS[arguments.preset]:
        found = {}
        classes = config_of(arguments, name).num_classes
        pattern = path_of(arguments, name, "[0-9]*", "[0-9]*").name
        for path in sorted(arguments.out.glob(pattern)):
            with np.load(path) as arrays:
                images = arrays["images"]
            labels = np.arange(len(images)) % PAINTED % classes if classes else None
            found.setdefault(int(path.stem.rsplit("-", 2)[1]), []).append(judged.row(iter([images]), labels))
        for steps, rows in sorted(found.items()):
            cells = [spread([row["frechet"] for row in rows], 2), spread([100 * row["named"] for row in rows], 1)]
            cells.append(spread([100 * row["accuracy"] for row in rows], 1) if classes else "")
            print(f"| {name} | {steps:,} | {len(rows)} | {' | '.join(cells)} |", flush=True)
    floor = judged.floor(arguments.num_images)
    named, right = 100 * floor["named"], 100 * floor["accuracy"]
    print(f"| real pictures | | | {floor['frechet']:.2f} | {named:.1f} | {right:.1f} |")


def spread(values, digits):
    """Mean, and of several half of the distance between the smallest and the largest."""
    half = f" ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{half}"


def parsed():
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    path = {"type": lambda given: pathlib.Path(given).expanduser().resolve(), "metavar": "PATH"}
    parser.add_argument("--out", **path, required=True, help="folder of the pictures")
    parser.add_argument("--data", **path, required=True, help="archive of x_train and y_train, or zip of class folders")
    rows = "which of recipes.py, between semicolons; if not given all whose rate falls"
    parser.add_argument("--rows", type=lambda text: text.split(";"), help=rows)
    parser.add_argument("--seeds", type=lambda text: text.split(","), default=["0", "1"], help="between commas (0,1)")
    parser.add_argument("--steps", type=int, default=3700, help="of each row (%(default)s)")
    parser.add_argument("--steps_of", **path, help="JSON of {row: steps}, for those that differ")
    parser.add_argument("--preset", choices=recipes.ROWS, default="mnist", help="whose rows (%(default)s)")
    parser.add_argument("--num_images", type=int, default=2000, help=f"to paint, in {PAINTED}s (%(default)s)")
    parser.add_argument("--workers", type=int, default=6, help="rows at a time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=500, help="after which no row goes on (%(default)s)")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="of JAX (%(default)s)")
    parser.add_argument("--judge", action="store_true", help="print the table of what is there")
    parser.add_argument("--held_out", **path, help="with --judge: zip or archive of other images, the floor")
    parser.add_argument("--extractor", default="mnist", help="with --judge: whose features (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [
        name for name in recipes.ROWS[arguments.preset] if config_of(arguments, name).learning_rate_decay != "none"
    ]
    arguments.rows = arguments.rows or names
    if unknown := [name for name in arguments.rows if name not in names]:
        parser.error(f"--rows must be among {'; '.join(names)}. Received: {'; '.join(unknown)}")
    if arguments.judge and not (arguments.held_out and arguments.held_out.is_file()):
        parser.error(f"--held_out must be an archive or a zip of other images. Received: {arguments.held_out}")
    return arguments


def main():
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.judge:
        return judge(arguments)
    if arguments.child:
        (name,) = arguments.rows
        return train(arguments, name)
    return run(arguments)


if __name__ == "__main__":
    main()
