"""Who paints MNIST best after equal minutes of the same cores? kddpm's preset beside four peers.

    .venv/bin/python benchmarks/peers/peers.py --out=/tmp/peers --data=mnist.npz --torch=/tmp/peers-venv/bin/python
    .venv/bin/python benchmarks/peers/peers.py --out=/tmp/peers --data=mnist.npz --only=kddpm --seed=1 --steps=1661
    .venv/bin/python benchmarks/peers/peers.py --out=/tmp/peers --data=mnist.npz --table

kddpm's preset `mnist`, with its classes and without, the recipe of diffusers' train_unconditional.py on an equal
network, lucidrains' `Trainer`, and the DDIM and DDPM of keras.io each train for `--minutes`, start and compilation
included, one after the other, in a process of its own; nothing else may run on the cores. (kddpm's may be given
`--steps` instead, for a second run as long as the first.) Each paints `--num_images` by DDIM in 50 steps from its
average. The pictures of all are judged by the same extractor, against the same training images, and the bits per
dimension are computed by the same code, `figures.py`; those of kddpm's network are printed by kddpm's own code too.
`--torch` has benchmarks/requirements.txt and denoising-diffusion-pytorch. What is there already is not made again.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import contestant
import figures
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # recipes
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the project, installed or not

import recipes

HERE = pathlib.Path(__file__).parent
PEERS = {"diffusers": "torch", "lucidrains": "torch", "keras-ddim": "keras", "keras-ddpm": "keras"}
ROWS = {"kddpm": "preset", "kddpm-no-classes": "preset, no classes"}  # of recipes.py
NAMES = (*ROWS, *PEERS)


def place(arguments, name):
    """Where the files of a contestant are."""
    return arguments.out / f"{name}-{recipes.budget(arguments)}-{arguments.seed}"


def network_of_kddpm():
    """The number of parameters of the preset's network, and the arguments of a PyTorch network like it."""
    from kddpm.networks.unet import UNet
    from kddpm.runs import presets

    config = presets.make_config("mnist", num_classes=None)
    names = ("width", "multipliers", "blocks_per_level", "attention_resolutions")
    architecture = {name: getattr(config, name) for name in names} | {"image_shape": (28, 28, 1)}
    network = UNet(**architecture)
    return network.count_params(), architecture | {"groups": network.groups}


def asked(arguments):
    """What a contestant's result depends on, besides its place."""
    return {
        "data": str(arguments.data), "num_images": arguments.num_images, "num_held_out": arguments.num_held_out,
    }  # fmt: skip


def made(arguments):
    """The folders of the results that are there, in the table's order; all must be of the same data and numbers."""
    paths = sorted(arguments.out.glob("*/made.json"), key=lambda path: NAMES.index(name_of(path)))
    for path in paths:
        about = json.loads((path.parent / "about.json").read_text())
        if other := [flag for flag, value in asked(arguments).items() if about[flag] != value]:
            sys.exit(f"peers.py: {path.parent} was made with another --{', --'.join(other)}; name another --out")
    return [path.parent for path in paths]


def run_peer(arguments, name, python):
    """Train and paint in a process of its own."""
    parameters, architecture = network_of_kddpm()
    out = place(arguments, name)
    about = asked(arguments) | {
        "folder": str(arguments.out / "pngs"), "out": str(out), "minutes": arguments.minutes,
        "parameters": parameters, "architecture": architecture, "started": time.time(),
    }  # fmt: skip
    (out / "about.json").write_text(json.dumps(about))
    script = HERE / f"{PEERS[name]}_peers.py"
    subprocess.run([python, str(script), name, str(out / "about.json")], check=True, cwd=HERE)


def run_kddpm(arguments, name):
    """Train the preset as `recipes.py` does, and let the same code as for the others paint and count bits."""
    out = place(arguments, name)
    (out / "about.json").write_text(json.dumps(asked(arguments)))
    recipe = argparse.Namespace(**vars(arguments) | {"preset": "mnist"})
    ends = recipes.trained(recipe, ROWS[name], out)
    import kddpm

    trained = kddpm.load_run(out / "run")
    classes = trained.network.num_classes
    with np.load(arguments.data) as arrays:
        held_out, labels = contestant.chosen(arrays, arguments.num_held_out)
    labels = labels if classes else None
    bits = kddpm.likelihood.bits_per_dim(trained, held_out, labels, num_terms=32)
    print(f"bits per dimension by kddpm's own code: {bits.total:.3f} +- {bits.standard_error:.3f}", flush=True)
    of_it = {"steps": len(ends), "parameters": trained.ema_network.count_params(), "seconds": ends[-1]}
    contestant.write(out, chain_of(trained), held_out, arguments.num_images, labels, classes, **of_it)


def chain_of(trained):
    """The `figures.Chain` of a model's averaged weights."""
    import tensorflow as tf

    from kddpm.theory import parametrization

    of_xt, of_output = parametrization.eps_coefficients(trained.schedule, trained.objective.prediction)
    said = tf.function(lambda *inputs: trained.ema_network(inputs, training=False), reduce_retracing=True)

    def eps_of(x_t, t, *labels):
        output = said(tf.constant(x_t), *(tf.constant(values, tf.int32) for values in (t, *labels))).numpy()
        a, b = (table[t][:, np.newaxis, np.newaxis, np.newaxis] for table in (of_xt, of_output))
        return a * x_t + b * output

    return figures.Chain(eps_of, trained.schedule.alpha_bars)


def write_pngs(arguments):
    """The training images as lucidrains' `Trainer` wants them; that takes nobody's minutes."""
    folder = arguments.out / "pngs"
    if folder.exists():
        return
    beside = arguments.out / "pngs.unfinished"
    beside.mkdir(exist_ok=True)
    with np.load(arguments.data) as arrays:
        for k, image in enumerate(arrays["x_train"]):
            Image.fromarray(image).save(beside / f"{k:05d}.png")
    beside.rename(folder)


def judge(arguments):
    """Print a row for each contestant that is there, the grids of their pictures beside it in `grid.png`."""
    from kddpm import data
    from kddpm.evaluation import features
    from kddpm.runs import judging

    train, test = (data.load(f"npz:{path}", (28, 28)) for path in (arguments.data, recipes.write_test(arguments)))
    extractor = features.load("mnist", (28, 28, 1))
    real = judging.split(train, test, arguments.num_images, 0)
    cache = arguments.out / "features"
    classes = 10  # which some paint in turn
    judged = judging.Judge(["fid", "accuracy"], extractor, real, classes, (), 64, cache, True)
    print("| | minutes | steps | parameters | Fréchet | named, % | bits/dim |\n|---|---|---|---|---|---|---|")
    floor, grids = judged.floor(arguments.num_images), []
    print(f"| real pictures | | | | {floor['frechet']:.2f} | {100 * floor['named']:.1f} | |")
    for folder in made(arguments):
        of_it = json.loads((folder / "made.json").read_text())
        with np.load(folder / "pictures.npz") as arrays:
            pictures = arrays["images"]
        row = judged.row(iter([pictures]), None)
        bits = "-" if of_it["bits"] is None else f"{of_it['bits']:.3f} ± {of_it['bits_standard_error']:.3f}"
        print(
            f"| {folder.name} | {of_it['seconds'] / 60:.1f} | {of_it['steps']:,} | {of_it['parameters']:,} "
            f"| {row['frechet']:.2f} ± {row['frechet_standard_error']:.2f} | {100 * row['named']:.1f} | {bits} |"
        )
        grids.append(pictures[:100, ..., 0].reshape(10, 10, 28, 28).swapaxes(1, 2).reshape(280, 280))
    if grids:
        apart = [np.pad(grid, 4, constant_values=128) for grid in grids]
        Image.fromarray(np.concatenate(apart, axis=1)).save(arguments.out / "grid.png")


def name_of(path):
    """The contestant whose folder holds a file."""
    return path.parent.name.rsplit("-", 2)[0]


def parsed():
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    path = {"type": lambda given: pathlib.Path(given).expanduser().absolute(), "metavar": "PATH"}
    parser.add_argument("--out", **path, required=True, help="folder of the contestants and their pictures")
    parser.add_argument("--data", **path, required=True, help="archive of x_train, y_train, x_test and y_test")
    parser.add_argument("--torch", **path, help="Python with PyTorch, diffusers and denoising-diffusion-pytorch")
    parser.add_argument("--only", type=lambda text: text.split(","), default=NAMES, help=f"among {', '.join(NAMES)}")
    parser.add_argument("--minutes", type=float, default=30, help="of each contestant (%(default)s)")
    parser.add_argument("--steps", type=int, help="of kddpm's run, in place of those that its minutes hold")
    parser.add_argument("--seed", type=int, default=0, help="of kddpm's run; the others draw their own (%(default)s)")
    parser.add_argument("--num_images", type=int, default=1000, help="to paint (%(default)s)")
    parser.add_argument("--num_held_out", type=int, default=200, help="test images for the bits (%(default)s)")
    parser.add_argument("--table", action="store_true", help="judge what is there")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only if name not in NAMES]:
        parser.error(f"--only must be among {', '.join(NAMES)}. Received: {', '.join(unknown)}")
    if arguments.num_images < 100:
        parser.error(f"--num_images must be at least 100, which the grid shows. Received: {arguments.num_images}")
    if not 0 < arguments.minutes < math.inf:
        parser.error(f"--minutes must be above 0. Received: {arguments.minutes}")
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps must be at least 1. Received: {arguments.steps}")
    if arguments.steps and (others := [name for name in arguments.only if name in PEERS]):
        parser.error(f"--steps goes with --only={' or '.join(ROWS)}. Received: {', '.join(others)}")
    if not 0 <= arguments.seed < 2**31:
        parser.error(f"--seed must be an int32 of at least 0. Received: {arguments.seed}")
    if not arguments.data.is_file():
        parser.error(f"--data must be an archive of images. Received: {arguments.data}")
    with np.load(arguments.data) as arrays:
        most = len(arrays["y_test"])
    if not 2 <= arguments.num_held_out <= most:
        parser.error(f"--num_held_out must lie in 2 .. {most}. Received: {arguments.num_held_out}")
    wants_torch = not arguments.table and any(PEERS.get(name) == "torch" for name in arguments.only)
    if wants_torch and not (arguments.torch and os.access(arguments.torch, os.X_OK)):
        parser.error(f"--torch must be a Python with PyTorch. Received: {arguments.torch}")
    return arguments


def main():
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    there = made(arguments)
    for name in () if arguments.table else arguments.only:
        if place(arguments, name) in there:
            continue
        place(arguments, name).mkdir(exist_ok=True)
        if name in ROWS:
            run_kddpm(arguments, name)
        else:
            write_pngs(arguments)
            run_peer(arguments, name, arguments.torch if PEERS[name] == "torch" else sys.executable)
    judge(arguments)


if __name__ == "__main__":
    main()
