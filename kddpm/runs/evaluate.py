"""`evaluate(run_dir)`: measures a trained run on real images; prints the results and writes them to the run.

    bits_per_dim.json      the variational bound on the images, and its cost; null if a number is unknown
    bits_per_dim.png       its terms against t
    rate_distortion.png    the error of x_0 against the bits so far; where all terms were computed
    ode_bits_per_dim.json  the bits by the probability-flow ODE
    quality.json, .png     generated pictures against real ones (`kddpm.runs.quality`)

The bound is `total` = `prior` (L_T) + `middle` (L_1 + ... + L_{T-1}) + `decoder` (L_0), in bits per dimension, means
over the images; with `num_trajectories` the three add up to `elbo`, and `total` is at most that on average. `terms` are
L_0 .. L_{T-1}, `distortions` and `rates` as in `likelihood.BitsPerDim`, `images` the totals of the images, `indices`
their indices in the data set, null = all in order. Memory is that of this process.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kddpm import data
from kddpm.base import arguments
from kddpm.base.errors import InputError, named_as
from kddpm.base.files import expand, locked, sha256
from kddpm.base.version import __version__
from kddpm.data import image_files
from kddpm.distribution import workers
from kddpm.evaluation import METRICS
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import build, quality
from kddpm.runs.bits import BITS, OPTIONS
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory, check_classes
from kddpm.runs.results import check_place

# Results that differ in one of these answer different questions.
_QUESTION = ("weights_sha256", "digest", "max_images", "seed")


def evaluate(
    run_dir: str | os.PathLike,
    metrics: Sequence[str] = ("bits_per_dim",),
    *,
    dataset: str | None = None,
    held_out: str | None = None,
    max_images: int | None = None,
    num_terms: int | None = None,
    num_trajectories: int | None = None,
    num_steps: int | None = None,
    divergence: str = "hutchinson",
    dequantization: str = "noise",
    clip: bool = True,
    num_images: int | None = None,
    samplers: Sequence[str] = (),
    checkpoints: str | Sequence[int] = (),
    ema_lengths: Sequence[float] = (),
    guidance_scales: Sequence[float] = (),
    models: Sequence[str | os.PathLike] = (),
    extractor: str | os.PathLike | None = None,
    batch_size: int = 64,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    overwrite: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    tfds_data_dir: str | None = None,
    cache_dir: str | None = None,
    skip_bad_images: bool = False,
    verbose: bool = True,
) -> dict[str, dict]:
    """Evaluate the averaged weights of a run.

    Args:
        run_dir: directory of a run of `kddpm.training`.
        metrics: of `kddpm.evaluation.METRICS`.
        dataset: as in `data.load`; None = what the run was trained on.
        held_out: the same, real images that are not in `dataset`, for the floor of the metrics of pictures; None = some
            of `dataset`, which the reference then lacks.
        max_images: count the bits of only this many images, the first in an order shuffled by `seed`; None = all.
        num_terms: as in `likelihood.bits_per_dim`; not of the ODE.
        num_trajectories: the same.
        num_steps: as in `likelihood.bits_per_dim`, and in `likelihood.ode_bits_per_dim`.
        divergence: as in `likelihood.ode_bits_per_dim`.
        dequantization: the same.
        clip: as in both.
        num_images: pictures to generate, of seeds from 0; None = `judging.DEFAULT_IMAGES`, or half of the images if
            these are few.
        samplers: NAME or NAME:STEPS each; () = the run's own.
        checkpoints: steps of checkpoints whose averaged weights generate, "all" = of all that are there; () = the run's
            averaged weights.
        ema_lengths: sigma_rel of averages of the weights that are rebuilt from the run's snapshots and generate too
            (`kddpm.runs.snapshots`).
        guidance_scales: of classes, for each of the samplers, 1 = no guidance; () = the run's.
        models: exported `.tflite` files whose pictures are measured too.
        extractor: as in `evaluation.features.load`; None = the one that comes with kddpm for these images.
        batch_size: images at a time.
        seed: of the noise of the bits, and of the choice of terms and images; int32.
        out: folder for the files; None = evaluation/ of the run.
        overwrite: whether to replace a result of other images, weights or settings; one of the same is always replaced.
        strategy: as in `training.train`.
        tfds_data_dir: the same.
        cache_dir: the same.
        skip_bad_images: the same.
        verbose: whether to say what is happening, print the numbers and show progress bars.

    Returns:
        {name of a JSON file: its content}; the metrics of pictures are together in "quality".

    Raises:
        InputError: unknown metric; no such run, checkpoint, sampler, file or extractor; a length that the snapshots do
            not give; guidance that the network does not take; another result in `out`; bits of images that were resized
            or recoloured; labels that are missing or not the run's; or as in `likelihood.bits_per_dim`.
    """
    strategy = strategy or tf.distribute.get_strategy()
    is_chief = workers.is_chief(strategy)
    verbose = verbose and is_chief

    def say(line):
        if verbose:
            print(line, flush=True)

    batch_size = arguments.count("batch_size", batch_size)
    seed = int(arguments.int32("seed", [seed])[0])
    for name in metrics:
        if name not in METRICS:
            raise InputError("metrics", f"must be among {', '.join(METRICS)}", repr(name))
    bits = [name for name in dict.fromkeys(metrics) if name in BITS]
    of_pictures = [name for name in dict.fromkeys(metrics) if name not in BITS]
    with workers.using(strategy), workers.all_or_none(strategy):
        run = RunDirectory(run_dir)
        config, trained_on = run.read()
        spec = dataset or config.dataset
        say(f"Reading {image_files.printable(spec)} ...")
        cache = cache_dir or run.data_path
        reading = {"tfds_data_dir": tfds_data_dir, "cache_dir": cache, "skip_bad_images": skip_bad_images}
        reading["progress"] = verbose
        source = _read("dataset", spec, config, trained_on, is_exact=bool(bits), **reading)
        others = None
        if held_out:
            others = _read("held_out", held_out, config, trained_on, is_exact=False, **reading)
        model, digest = _loaded(run)
    indices = _chosen(len(source.images), max_images, seed)
    chosen = {"max_images": max_images, "seed": seed, "batch_size": batch_size}
    facts = {"kddpm": __version__, "run_dir": str(run_dir), **_facts(digest, spec, source, trained_on), **chosen}
    out = run.evaluation_path if out is None else pathlib.Path(expand(out))
    options: dict[str, Any] = {
        "num_terms": num_terms, "num_trajectories": num_trajectories, "num_steps": num_steps,
        "divergence": divergence, "dequantization": dequantization, "clip": clip,
        "seed": seed, "batch_size": batch_size, "verbose": "auto" if verbose else False,
    }  # fmt: skip
    measure = None
    if of_pictures:
        with workers.using(strategy), workers.all_or_none(strategy):
            ways = tuple(samplers), checkpoints, tuple(ema_lengths), tuple(guidance_scales), tuple(models)
            wanted = quality.Wanted(of_pictures, num_images, *ways, extractor)
            measure = quality.Quality(
                run, model, source, others, wanted, facts, pathlib.Path(expand(cache)), say, verbose
            )
    results = {}
    with contextlib.ExitStack() as stack:
        with workers.using(strategy), workers.all_or_none(strategy):
            if is_chief:
                stack.enter_context(_writing(out))
            for name in bits:
                asked = {key: options[key] for key in OPTIONS[name]}
                check_place(out / f"{name}.json", facts, _QUESTION, asked, overwrite)
            if measure:
                later = {"ema_lengths": measure.facts["ema_lengths"]}  # results from before that flag lack it
                check_place(out / "quality.json", measure.facts, quality.QUESTION, later, overwrite)
        for name in bits:
            with workers.using(strategy):
                results[name] = BITS[name](model, source, indices, facts, options, out if is_chief else None, say)
        if measure:
            results["quality"] = measure(results, out if is_chief else None)
    return results


@contextlib.contextmanager
def _writing(out: pathlib.Path) -> Iterator[None]:
    """Keep other evaluations from writing to a folder, which is made, within the block.

    Raises:
        InputError: another one is.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except BlockingIOError:
            raise InputError("out", "must be another folder: another process is writing to it", out) from None
        try:
            yield
        finally:
            if is_new and not any(out.iterdir()):  # it ended before there was a result
                out.rmdir()


def _loaded(run: RunDirectory) -> tuple[DiffusionModel, str]:
    """Return the model of a run, and the sha256 of its averaged weights.

    Raises:
        InputError: as `build.load_run`, or training has replaced them meanwhile.
    """
    path = run.weights_path
    before = sha256(path) if path.is_file() else None
    model = build.load_run(run.path)
    digest = sha256(path)
    if digest != before:
        expected = "must keep its weights while they are read, and training has replaced them: start again"
        raise InputError("run_dir", expected, path)
    return model, digest


def _facts(digest: str, spec: str, source: data.ImageData, trained_on: dict) -> dict[str, object]:
    """Return which weights are evaluated on which images."""
    return {
        "weights_sha256": digest,
        "dataset": spec,
        "digest": source.digest,
        "trained_on_these": source.digest == trained_on["digest"],
    }


def _read(name: str, spec: str, config: TrainConfig, trained_on: dict, is_exact: bool, **options) -> data.ImageData:
    """Load and check the images of the argument `name`.

    The run's own data are loaded with the run's arguments, so that their cache is reused.
    """
    own = spec == config.dataset
    height, width, channels = trained_on["image_shape"]
    size = config.image_size if own else (height, width)
    with named_as(name, "dataset"):
        source = data.load(spec, size, config.channels if own else channels, **options)
    _check(name, source, config, trained_on, is_exact)
    return source


def _check(name: str, source: data.ImageData, config: TrainConfig, trained_on: dict, is_exact: bool) -> None:
    """Check that the classes of images are the run's and, if `is_exact`, that they are unaltered.

    Raises:
        InputError: they are not.
    """
    if source.altered and is_exact:
        height, width, channels = trained_on["image_shape"]
        raise InputError(
            name,
            f"must hold {'grey' if channels == 1 else 'RGB'} images of {width}x{height} to be taken as they are: an "
            "image that was resized has other bits to code",
            f"{source.source}, with {source.changes}",
        )
    check_classes(name, source, config, trained_on)


def _chosen(count: int, max_images: int | None, seed: int) -> np.ndarray | None:
    """Return the indices of the images to evaluate, in increasing order; None = all."""
    if max_images is None or max_images >= count:
        return None
    if max_images < 1:
        raise InputError("max_images", "must be at least 1", max_images)
    return np.sort(np.random.default_rng(seed % 2**32).permutation(count)[:max_images])
