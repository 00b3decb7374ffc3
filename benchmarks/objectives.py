"""Which prediction, weighting and sampler? Every objective with the same budget, judged by bits and by eye.

    .venv/bin/python benchmarks/objectives.py --out=/tmp/objectives             # trains, about two hours on two cores
    .venv/bin/python benchmarks/objectives.py --out=/tmp/objectives --samplers  # steps against quality
    /tmp/quality/bin/python benchmarks/objectives.py --judge=/tmp/objectives    # the tables, as Markdown
    .venv/bin/python benchmarks/objectives.py --out=/tmp/mnist --preset=mnist --dataset=npz:mnist.npz --paper

The first two want the project's `.venv`, the third one benchmarks/requirements.txt in an environment of its own. Each
model is trained for 2,000 steps of the preset on all but 300 of the images; those 300 are what the bits per dimension
are of. With --paper only the rows of Ho et al. 2020, table 2, are trained, and their bits printed; the judge knows
digits alone. What is there already is not made again.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the project beside this script, installed or not

from kddpm.base.files import replacing


@dataclasses.dataclass(frozen=True)
class Row:
    """What a model is trained for; the name of its folder says what differs from the defaults."""

    prediction: str
    weighting: str
    variance: str = "small"
    timestep_sampling: str = "uniform"
    schedule: str = "cosine"

    @property
    def name(self):
        """Of its folder."""
        others = (getattr(self, f.name) for f in dataclasses.fields(self)[2:] if getattr(self, f.name) != f.default)
        return "_".join([self.prediction, self.weighting, *others])


# Ho et al. 2020, table 2: of mu and eps the bound, with a fixed and a learned variance, and the squared error alone.
PAPER = [Row(*row) for row in itertools.product(("mu", "eps"), ("vlb", "simple"))]
PAPER += [Row(prediction, "vlb", "learned") for prediction in ("mu", "eps")]
ROWS = [Row(*row) for row in itertools.product(("eps", "x0", "v", "mu"), ("simple", "vlb", "min_snr"))]
ROWS += [Row(prediction, "hybrid", "learned") for prediction in ("eps", "x0", "v", "mu")]
ROWS += [Row(prediction, "vlb", timestep_sampling="importance") for prediction in ("eps", "v")]
ROWS += [row for row in PAPER if row not in ROWS]
# Karras et al. 2022, and flow matching (Lipman et al. 2023), each beside eps drawn in the same way.
ROWS += [Row("edm", "simple", timestep_sampling="log_normal"), Row("eps", "simple", timestep_sampling="log_normal")]
ROWS += [Row("velocity", "simple", schedule="flow"), Row("eps", "simple", schedule="flow")]
ROWS += [Row("eps", "simple", timestep_sampling="stratified")]
SAMPLERS = {
    "ancestral": ("ancestral", {}),
    "ancestral, large": ("ancestral", {"variance": "large"}),
    "ddim": ("ddim", {}),
    "dpm_solver": ("dpm_solver", {"spacing": "trailing"}),
    "heun": ("heun", {"spacing": "trailing"}),
    "predictor_corrector": ("predictor_corrector", {}),
}
STEPS = (1000, 250, 50, 20, 10, 5)
STEPS_OF_TRAINING, HELD_OUT, PICTURES = 2000, 300, 500
ROW_OF_SAMPLERS = Row("eps", "simple")


def split(config):
    """The images to train on, and the others, both with labels; the same split at every call."""
    from kddpm import data

    images = data.load(config.dataset, config.image_size, config.channels)
    order = np.random.default_rng(0).permutation(len(images.images))
    return [
        data.ImageData(**{**vars(images), "images": images.images[rows], "labels": images.labels[rows]})
        for rows in (order[HELD_OUT:], order[:HELD_OUT])
    ]


def pictures_of(out, sampler, steps):
    """Where the pictures of a sampler are kept."""
    return out / "samplers" / f"{sampler.replace(', ', '_')}_{steps}.npz"


def save_pictures(path, pictures):
    """All of them or none."""
    with replacing(path) as beside:
        np.savez_compressed(beside, images=pictures)


def train(row, config, folder):
    """A trained model, from its weights where they are there."""
    import keras

    from kddpm import data
    from kddpm.runs import build

    config = dataclasses.replace(config, **dataclasses.asdict(row))
    keras.utils.set_random_seed(0)
    model = build.build_model(config, (*config.image_size, config.channels))
    weights = folder / "ema.weights.h5"
    if weights.exists():
        model.ema_network.load_weights(weights)
        return model
    rate = keras.optimizers.schedules.PolynomialDecay(0.0, config.warmup_steps, config.learning_rate)
    model.compile(keras.optimizers.Adam(rate))
    batches = data.batches(split(config)[0], config.batch_size, seed=0, stop=STEPS_OF_TRAINING)
    model.fit(batches, steps_per_epoch=STEPS_OF_TRAINING, verbose=0)
    with replacing(weights) as beside:
        model.ema_network.save_weights(beside)
    return model


def objectives(out, rows, config):
    """Train every row, save 500 pictures and the bits of each."""
    from kddpm import likelihood

    held_out = split(config)[1].images
    for row in rows:
        folder = out / row.name
        if (folder / "bits.json").exists():
            continue
        began = time.perf_counter()
        model = train(row, config, folder)
        pictures = model.generate(range(PICTURES), num_steps=250, batch_size=PICTURES, verbose=False)
        save_pictures(folder / "samples.npz", pictures)
        bits = {}
        for variance in ("learned",) if row.variance == "learned" else ("small", "large"):
            trained = dataclasses.replace(model.objective, variance=variance)
            denoiser = dataclasses.replace(model.denoiser, objective=trained)
            result = likelihood.bits_per_dim(denoiser, held_out, batch_size=HELD_OUT, verbose=False)
            bits[variance] = (result.total, result.standard_error)
        with replacing(folder / "bits.json") as beside:
            beside.write_text(json.dumps(bits))
        print(f"{row.name}: {bits}, {time.perf_counter() - began:.0f} s", flush=True)


def samplers(out, config):
    """500 pictures of each sampler in each number of steps."""
    from kddpm.sampling import samplers as kd_samplers

    model = train(ROW_OF_SAMPLERS, config, out / ROW_OF_SAMPLERS.name)
    for row, (name, options) in SAMPLERS.items():
        for steps in STEPS:
            path = pictures_of(out, row, steps)
            if path.exists():
                continue
            began = time.perf_counter()
            sampler = kd_samplers.by_name(name, **options)
            pictures = model.generate(range(PICTURES), sampler, steps, batch_size=PICTURES, verbose=False)
            save_pictures(path, pictures)
            print(f"{row} in {steps} steps: {time.perf_counter() - began:.0f} s", flush=True)


def tables(out):
    """Print both tables."""
    from digits_quality import Judge, frechet

    judge = Judge()

    def quality(path):
        pictures = np.load(path)["images"]
        apart = frechet(pictures.reshape(len(pictures), -1).astype(float), judge.real)
        return f"{100 * judge.named(pictures):.1f}", f"{judge.balance(pictures):.2f}", f"{apart:.1f}"

    print("| prediction | weighting | named, % | balance | statistics | bits, small | bits, large | bits, learned |")
    print("|---" * 8 + "|")
    for row in ROWS:
        folder = out / row.name
        bits = json.loads((folder / "bits.json").read_text())
        others = [name for name in (row.timestep_sampling, row.schedule) if name not in ("uniform", "cosine")]
        cells = [row.prediction, ", ".join([row.weighting, *others])]
        cells += quality(folder / "samples.npz")
        cells += [f"{bits[v][0]:.2f} ± {bits[v][1]:.2f}" if v in bits else "" for v in ("small", "large", "learned")]
        print(f"| {' | '.join(cells)} |")
    print()
    print(f"| sampler | {' | '.join(f'{steps:,}' for steps in STEPS)} |")
    print("|---|" + "---|" * len(STEPS))
    for sampler in SAMPLERS:
        judged = [quality(pictures_of(out, sampler, steps)) for steps in STEPS]
        print(f"| {sampler} | {' | '.join(f'{named}, {apart}' for named, _, apart in judged)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=lambda path: pathlib.Path(path).expanduser(), help="where models and pictures go")
    parser.add_argument("--samplers", action="store_true", help="compare samplers instead of objectives")
    parser.add_argument(
        "--judge", type=lambda path: pathlib.Path(path).expanduser(), help="print the tables of what --out made"
    )
    parser.add_argument("--preset", default="digits", help="whose network, data and learning rate")
    parser.add_argument("--dataset", help="instead of the preset's, as in train.py")
    parser.add_argument("--paper", action="store_true", help="only the rows of Ho et al. 2020, table 2")
    arguments = parser.parse_args()
    if arguments.judge:
        tables(arguments.judge)
        return
    if not arguments.out:
        parser.error("--out or --judge is needed")
    from kddpm.runs import presets

    given = {} if arguments.dataset is None else {"dataset": arguments.dataset}
    config = presets.make_config(arguments.preset, **given)
    if arguments.samplers:
        samplers(arguments.out, config)
    else:
        objectives(arguments.out, PAPER if arguments.paper else ROWS, config)


if __name__ == "__main__":
    main()
