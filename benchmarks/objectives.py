"""Which prediction, weighting and sampler? Every objective with the same budget, judged by bits and by eye.

    .venv/bin/python benchmarks/objectives.py --out=/tmp/objectives             # trains, about an hour on two cores
    .venv/bin/python benchmarks/objectives.py --out=/tmp/objectives --samplers  # steps against quality
    /tmp/quality/bin/python benchmarks/objectives.py --judge=/tmp/objectives    # the tables, as Markdown

The first two want the project's `.venv`, the third one benchmarks/requirements.txt in an environment of its own. Each
model is trained on all but the held-out images, which the bits per dimension are of. What is there already is not made
again, and the tables have the rows that are there.

The rows of Ho et al. 2020, table 2, on larger pictures, with a smaller budget. The judge knows digits
alone; here the pixels' statistics remain, for which the project's `.venv` is enough:

    .venv/bin/python benchmarks/objectives.py --out=/tmp/mnist --paper --preset=mnist --dataset=npz:mnist.npz \\
        --steps=500 --num_terms=20 --num_pictures=200 --num_steps=50
    .venv/bin/python benchmarks/objectives.py --judge=/tmp/mnist --preset=mnist --dataset=npz:mnist.npz
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
ROW_OF_SAMPLERS = Row("eps", "simple")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What each row gets: the flags of the same names."""

    steps: int = 2000  # of training
    num_held_out: int = 300  # images that the bits are of
    num_terms: int | None = None  # of the bound, for each of them; None = all
    num_pictures: int = 500
    num_steps: int = 250  # of ancestral sampling


def split(config, num_held_out):
    """The images to train on, and the others, both with labels; the same split at every call."""
    from kddpm import data

    images = data.load(config.dataset, config.image_size, config.channels)
    order = np.random.default_rng(0).permutation(len(images.images))
    return [
        data.ImageData(**{**vars(images), "images": images.images[rows], "labels": images.labels[rows]})
        for rows in (order[num_held_out:], order[:num_held_out])
    ]


def pictures_of(out, sampler, steps):
    """Where the pictures of a sampler are kept."""
    return out / "samplers" / f"{sampler.replace(', ', '_')}_{steps}.npz"


def save(path, write):
    """A whole file or none; `write` takes the path to write to."""
    from kddpm.base.files import replacing

    with replacing(path) as beside:
        write(beside)


def paint(path, budget, model, *sampling):
    """Save the pictures of a model."""
    pictures = model.generate(range(budget.num_pictures), *sampling, batch_size=budget.num_pictures, verbose=False)
    save(path, lambda beside: np.savez_compressed(beside, images=pictures))


def train(row, config, budget, folder):
    """A trained model, from its weights where they are there."""
    import keras

    from kddpm import data
    from kddpm.runs import build

    config = dataclasses.replace(config, num_classes=None, **dataclasses.asdict(row))
    keras.utils.set_random_seed(0)
    model = build.build_model(config, (*config.image_size, config.channels))
    weights = folder / "ema.weights.h5"
    if weights.exists():
        model.ema_network.load_weights(weights)
        return model
    rate = keras.optimizers.schedules.PolynomialDecay(0.0, config.warmup_steps, config.learning_rate)
    model.compile(keras.optimizers.Adam(rate))
    batches = data.batches(split(config, budget.num_held_out)[0], config.batch_size, seed=0, stop=budget.steps)
    model.fit(batches, steps_per_epoch=budget.steps, verbose=0)
    save(weights, model.ema_network.save_weights)
    return model


def objectives(out, rows, config, budget):
    """Train every row, save pictures and the bits of each."""
    from kddpm import likelihood

    held_out = split(config, budget.num_held_out)[1].images
    for row in rows:
        folder = out / row.name
        if (folder / "bits.json").exists():
            continue
        began = time.perf_counter()
        model = train(row, config, budget, folder)
        paint(folder / "samples.npz", budget, model, "ancestral", budget.num_steps)
        bits = {}
        for variance in ("learned",) if row.variance == "learned" else ("small", "large"):
            trained = dataclasses.replace(model.objective, variance=variance)
            denoiser = dataclasses.replace(model.denoiser, objective=trained)
            result = likelihood.bits_per_dim(
                denoiser, held_out, num_terms=budget.num_terms, batch_size=len(held_out), verbose=False
            )
            bits[variance] = (result.total, result.standard_error)
        save(folder / "bits.json", lambda beside, bits=bits: beside.write_text(json.dumps(bits)))
        print(f"{row.name}: {bits}, {time.perf_counter() - began:.0f} s", flush=True)


def samplers(out, config, budget):
    """The pictures of each sampler in each number of steps."""
    from kddpm.sampling import samplers as kd_samplers

    model = train(ROW_OF_SAMPLERS, config, budget, out / ROW_OF_SAMPLERS.name)
    for row, (name, options) in SAMPLERS.items():
        for steps in STEPS:
            path = pictures_of(out, row, steps)
            if path.exists():
                continue
            began = time.perf_counter()
            paint(path, budget, model, kd_samplers.by_name(name, **options), steps)
            print(f"{row} in {steps} steps: {time.perf_counter() - began:.0f} s", flush=True)


def measures(config, budget):
    """What tells the quality of uint8 pictures (N, H, W, C), as {column: function that gives its cell}."""
    from digits_quality import Judge, frechet

    def apart(real):
        flat = real.reshape(len(real), -1).astype(float)
        return lambda pictures: f"{frechet(pictures.reshape(len(pictures), -1).astype(float), flat):.1f}"

    if config is not None:
        return {"statistics": apart(split(config, budget.num_held_out)[0].images)}
    judge = Judge()
    return {
        "named, %": lambda pictures: f"{100 * judge.named(pictures):.1f}",
        "balance": lambda pictures: f"{judge.balance(pictures):.2f}",
        "statistics": apart(judge.real),
    }


def table_of_objectives(out, rows, columns):
    """Print the rows that are there, and the names of the others."""
    variances = ("small", "large", "learned")
    print("| prediction | weighting |", " | ".join([*columns, *(f"bits, {variance}" for variance in variances)]), "|")
    print("|---" * (2 + len(columns) + len(variances)) + "|")
    missing = []
    for row in rows:
        folder = out / row.name
        if not (folder / "bits.json").exists():
            missing.append(row.name)
            continue
        bits = json.loads((folder / "bits.json").read_text())
        others = [name for name in (row.timestep_sampling, row.schedule) if name not in ("uniform", "cosine")]
        pictures = np.load(folder / "samples.npz")["images"]
        cells = [row.prediction, ", ".join([row.weighting, *others]), *(cell(pictures) for cell in columns.values())]
        cells += [f"{bits[v][0]:.2f} ± {bits[v][1]:.2f}" if v in bits else "" for v in variances]
        print(f"| {' | '.join(cells)} |")
    if missing:
        print(f"\nNot there: {', '.join(missing)}.")


def table_of_samplers(out, columns):
    """Print the quality of pictures, but for their balance, against the number of steps."""
    print(f"\n| sampler | {' | '.join(f'{steps:,}' for steps in STEPS)} |")
    print("|---|" + "---|" * len(STEPS))
    shown = [function for name, function in columns.items() if name != "balance"]
    for sampler in SAMPLERS:
        paths = [pictures_of(out, sampler, steps) for steps in STEPS]
        judged = [np.load(path)["images"] if path.exists() else None for path in paths]
        cells = ["" if it is None else ", ".join(cell(it) for cell in shown) for it in judged]
        print(f"| {sampler} | {' | '.join(cells)} |")


def parsed():
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    path = {"type": lambda given: pathlib.Path(given).expanduser(), "metavar": "FOLDER"}
    parser.add_argument("--out", **path, help="where models and pictures go")
    parser.add_argument("--samplers", action="store_true", help="compare samplers instead of objectives")
    parser.add_argument("--judge", **path, help="print the tables of what --out made")
    parser.add_argument("--preset", default="digits", help="whose network, data and learning rate")
    parser.add_argument("--dataset", help="instead of the preset's, as in train.py")
    parser.add_argument("--paper", action="store_true", help="only the rows of Ho et al. 2020, table 2")
    count = {"type": int, "metavar": "N"}
    parser.add_argument("--steps", **count, default=Budget.steps, help="of training (%(default)s)")
    parser.add_argument(
        "--num_held_out", **count, default=Budget.num_held_out, help="images for the bits (%(default)s)"
    )
    parser.add_argument("--num_terms", **count, help="of the bound, for each of these images, instead of all")
    parser.add_argument("--num_pictures", **count, default=Budget.num_pictures, help="to paint (%(default)s)")
    parser.add_argument("--num_steps", **count, default=Budget.num_steps, help="of ancestral sampling (%(default)s)")
    arguments = parser.parse_args()
    if not (arguments.out or arguments.judge):
        parser.error("--out or --judge is needed")
    return arguments


def tables(out, rows, columns):
    """Print both tables, the second one where --samplers has made it."""
    table_of_objectives(out, rows, columns)
    if (out / "samplers").exists():
        table_of_samplers(out, columns)


def main():
    arguments = parsed()
    budget = Budget(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Budget)})
    config, is_digits = None, arguments.preset == "digits" and arguments.dataset is None
    if not (arguments.judge and is_digits):  # where no kddpm is needed
        from kddpm.runs import presets

        given = {} if arguments.dataset is None else {"dataset": arguments.dataset}
        config = presets.make_config(arguments.preset, **given)
    rows = PAPER if arguments.paper else ROWS
    if arguments.judge:
        tables(arguments.judge, rows, measures(config, budget))
    elif arguments.samplers:
        samplers(arguments.out, config, budget)
    else:
        objectives(arguments.out, rows, config, budget)


if __name__ == "__main__":
    main()
