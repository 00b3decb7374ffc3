"""Which prediction, weighting and sampler? Every objective on `digits` with the same budget, judged by bits and by eye.

    .venv/bin/python benchmarks/objectives.py --out=/tmp/objectives             # trains, about two hours on two cores
    .venv/bin/python benchmarks/objectives.py --out=/tmp/objectives --samplers  # steps against quality
    /tmp/quality/bin/python benchmarks/objectives.py --judge=/tmp/objectives    # the tables, as Markdown

The first two want the project's `.venv`, the last one benchmarks/requirements.txt in an environment of its own. Each
model is trained for 2,000 steps of the preset `digits` on all but 300 of the digits; those 300 are what the bits per
dimension are of. What is there already is not made again.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the project beside this script, installed or not

from kddpm.base.files import replacing

PREDICTIONS, WEIGHTINGS = ("eps", "x0", "v", "mu"), ("simple", "vlb", "min_snr", "hybrid")
# What the network predicts, the weights, and how t is drawn.
OBJECTIVES = [(prediction, weighting, "uniform") for prediction in PREDICTIONS for weighting in WEIGHTINGS]
OBJECTIVES += [("eps", "vlb", "importance"), ("v", "vlb", "importance")]
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
OBJECTIVE_OF_SAMPLERS = ("eps", "simple", "uniform")


def split():
    """The digits to train on, and the others, both with labels; the same split at every call."""
    from kddpm import data

    digits = data.load("digits")
    order = np.random.default_rng(0).permutation(len(digits.images))
    return [
        data.ImageData(**{**vars(digits), "images": digits.images[rows], "labels": digits.labels[rows]})
        for rows in (order[HELD_OUT:], order[:HELD_OUT])
    ]


def folder_of(out, prediction, weighting, sampling):
    """Where the model of an objective is kept."""
    return out / f"{prediction}_{weighting}{'' if sampling == 'uniform' else f'_{sampling}'}"


def pictures_of(out, sampler, steps):
    """Where the pictures of a sampler are kept."""
    return out / "samplers" / f"{sampler.replace(', ', '_')}_{steps}.npz"


def save_pictures(path, pictures):
    """All of them or none."""
    with replacing(path) as beside:
        np.savez_compressed(beside, images=pictures)


def train(objective, folder):
    """A trained model, from its weights where they are there."""
    import keras

    from kddpm import data
    from kddpm.runs import build, presets

    prediction, weighting, sampling = objective
    config = presets.make_config(
        "digits",
        prediction=prediction,
        weighting=weighting,
        variance="learned" if weighting == "hybrid" else "small",
        timestep_sampling=sampling,
    )
    keras.utils.set_random_seed(0)
    model = build.build_model(config, (8, 8, 1))
    weights = folder / "ema.weights.h5"
    if weights.exists():
        model.ema_network.load_weights(weights)
        return model
    rate = keras.optimizers.schedules.PolynomialDecay(0.0, config.warmup_steps, config.learning_rate)
    model.compile(keras.optimizers.Adam(rate))
    batches = data.batches(split()[0], config.batch_size, seed=0, stop=STEPS_OF_TRAINING)
    model.fit(batches, steps_per_epoch=STEPS_OF_TRAINING, verbose=0)
    with replacing(weights) as beside:
        model.ema_network.save_weights(beside)
    return model


def objectives(out):
    """Train every objective, save 500 pictures and the bits of each."""
    from kddpm import likelihood

    held_out = split()[1].images
    for objective in OBJECTIVES:
        folder = folder_of(out, *objective)
        if (folder / "bits.json").exists():
            continue
        began = time.perf_counter()
        model = train(objective, folder)
        pictures = model.generate(range(PICTURES), num_steps=250, batch_size=PICTURES, verbose=False)
        save_pictures(folder / "samples.npz", pictures)
        bits = {}
        for variance in ("learned",) if "hybrid" in objective else ("small", "large"):
            trained = dataclasses.replace(model.objective, variance=variance)
            denoiser = dataclasses.replace(model.denoiser, objective=trained)
            result = likelihood.bits_per_dim(denoiser, held_out, batch_size=HELD_OUT, verbose=False)
            bits[variance] = (result.total, result.standard_error)
        with replacing(folder / "bits.json") as beside:
            beside.write_text(json.dumps(bits))
        print(f"{' '.join(objective)}: {bits}, {time.perf_counter() - began:.0f} s", flush=True)


def samplers(out):
    """500 pictures of each sampler in each number of steps."""
    from kddpm.sampling import samplers as kd_samplers

    model = train(OBJECTIVE_OF_SAMPLERS, folder_of(out, *OBJECTIVE_OF_SAMPLERS))
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
    for objective in OBJECTIVES:
        folder = folder_of(out, *objective)
        bits = json.loads((folder / "bits.json").read_text())
        prediction, weighting, sampling = objective
        cells = [prediction, weighting if sampling == "uniform" else f"{weighting}, {sampling}"]
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
    arguments = parser.parse_args()
    if arguments.judge:
        tables(arguments.judge)
    elif not arguments.out:
        parser.error("--out or --judge is needed")
    elif arguments.samplers:
        samplers(arguments.out)
    else:
        objectives(arguments.out)


if __name__ == "__main__":
    main()
