"""`evaluate(run_dir)`: measures a trained run on unaltered images; prints the results and writes them to the run.

    bits_per_dim.json      the variational bound on the images, and its cost; null if a number is unknown
    bits_per_dim.png       its terms against t
    rate_distortion.png    the error of x_0 against the bits so far; where all terms were computed
    ode_bits_per_dim.json  the bits by the probability-flow ODE

The bound is `total` = `prior` (L_T) + `middle` (L_1 + ... + L_{T-1}) + `decoder` (L_0), in bits per dimension, means
over the images; with `num_trajectories` the three add up to `elbo`, and `total` is at most that on average. `terms` are
L_0 .. L_{T-1}, `distortions` and `rates` as in `likelihood.BitsPerDim`, `images` the totals of the images, `indices`
their indices in the data set, null = all in order. Memory is that of this process.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kddpm import data, plots
from kddpm.base import extras, memory
from kddpm.base.errors import InputError
from kddpm.base.files import expand, read_json, replacing, sha256
from kddpm.base.version import __version__
from kddpm.data import image_files
from kddpm.distribution import workers
from kddpm.evaluation import likelihood
from kddpm.evaluation.likelihood import BitsPerDim
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import build
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory

# Results that differ in one of these answer different questions.
_QUESTION = ("weights_sha256", "digest", "max_images", "seed")
_OPTIONS = {  # of each metric, and part of its question
    "bits_per_dim": ("num_terms", "num_trajectories", "num_steps", "clip"),
    "ode_bits_per_dim": ("num_steps", "divergence", "dequantization", "clip"),
}
_MOST_KINDS = 4  # kinds of changes to images that an error lists


def evaluate(
    run_dir: str | os.PathLike,
    metrics: Sequence[str] = ("bits_per_dim",),
    *,
    dataset: str | None = None,
    max_images: int | None = None,
    num_terms: int | None = None,
    num_trajectories: int | None = None,
    num_steps: int | None = None,
    divergence: str = "hutchinson",
    dequantization: str = "noise",
    clip: bool = True,
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
        metrics: keys of `METRICS`.
        dataset: as in `data.load`; None = what the run was trained on.
        max_images: evaluate only this many images, the first in an order shuffled by `seed`; None = all.
        num_terms: as in `likelihood.bits_per_dim`; not of the ODE.
        num_trajectories: the same.
        num_steps: as in `likelihood.bits_per_dim`, and in `likelihood.ode_bits_per_dim`.
        divergence: as in `likelihood.ode_bits_per_dim`.
        dequantization: the same.
        clip: as in both.
        batch_size: the same.
        seed: of the noise and of the choice of terms and images; int32.
        out: folder for the files; None = evaluation/ of the run.
        overwrite: whether to replace a result of other images, weights or settings; one of the same is always replaced.
        strategy: as in `training.train`.
        tfds_data_dir: the same.
        cache_dir: the same.
        skip_bad_images: the same.
        verbose: whether to say what is happening, print the numbers and show progress bars.

    Returns:
        {metric: content of its JSON file}.

    Raises:
        InputError: unknown metric; no such run; another result in `out`; images that were resized or recoloured;
            labels that are missing or not the run's; or as in `likelihood.bits_per_dim`.
    """
    strategy = strategy or tf.distribute.get_strategy()
    is_chief = workers.is_chief(strategy)
    verbose = verbose and is_chief

    def say(line):
        if verbose:
            print(line, flush=True)

    for name in metrics:
        if name not in METRICS:
            raise InputError("metrics", f"must be among {', '.join(METRICS)}", repr(name))
    with workers.using(strategy), workers.all_or_none(strategy):
        run = RunDirectory(run_dir)
        config, trained_on = run.read()
        spec = dataset or config.dataset
        say(f"Reading {image_files.printable(spec)} ...")
        reading = {"tfds_data_dir": tfds_data_dir, "cache_dir": cache_dir or run.data_path, "progress": verbose}
        source = _read(spec, config, trained_on, skip_bad_images=skip_bad_images, **reading)
        model = build.load_run(run_dir)
    indices = _chosen(len(source.images), max_images, seed)
    chosen = {"max_images": max_images, "seed": seed, "batch_size": batch_size}
    facts = {"kddpm": __version__, "run_dir": str(run_dir), **_facts(run, spec, source, trained_on), **chosen}
    out = run.evaluation_path if out is None else pathlib.Path(expand(out))
    options: dict[str, Any] = {
        "num_terms": num_terms, "num_trajectories": num_trajectories, "num_steps": num_steps,
        "divergence": divergence, "dequantization": dequantization, "clip": clip,
        "seed": seed, "batch_size": batch_size, "verbose": "auto" if verbose else False,
    }  # fmt: skip
    results = {}
    for name in metrics:
        _check_place(out / f"{name}.json", facts, {key: options[key] for key in _OPTIONS[name]}, overwrite)
    for name in dict.fromkeys(metrics):
        with workers.using(strategy):
            results[name] = METRICS[name](model, source, indices, facts, options, out if is_chief else None, say)
    return results


def _facts(run: RunDirectory, spec: str, source: data.ImageData, trained_on: dict) -> dict[str, object]:
    """Return which weights are evaluated on which images."""
    return {
        "weights_sha256": sha256(run.weights_path),
        "dataset": spec,
        "digest": source.digest,
        "trained_on_these": source.digest == trained_on["digest"],
    }


def _read(spec: str, config: TrainConfig, trained_on: dict, **options) -> data.ImageData:
    """Load and check the images; the run's own data with the run's arguments, so that their cache is reused."""
    own = spec == config.dataset
    height, width, channels = trained_on["image_shape"]
    size = config.image_size if own else (height, width)
    source = data.load(spec, size, config.channels if own else channels, **options)
    _check(source, config, trained_on)
    return source


def _bits_per_dim(model: DiffusionModel, source: data.ImageData, indices, facts, options, out, say) -> dict:
    """Compute the bound; unless `out` is None, write a JSON file and figures of its terms; pass a table to `say`."""
    options = {name: options[name] for name in (*_OPTIONS["bits_per_dim"], "seed", "batch_size", "verbose")}
    result = model.bits_per_dim(*_images(model, source, indices), **options)
    decoder = float(result.terms[0])
    middle = result.elbo - result.prior - decoder
    content = {
        **facts,
        **{name: options[name] for name in _OPTIONS["bits_per_dim"]},
        "num_images": len(result.images),
        "total": result.total,
        "standard_error": result.standard_error,
        "monte_carlo_error": result.monte_carlo_error,
        "elbo": result.elbo,
        "prior": result.prior,
        "middle": middle,
        "decoder": decoder,
        "seconds_per_image": result.seconds_per_image,
        "bytes_per_image": result.bytes_per_image,
        "peak_bytes": memory.peak(),
        "terms": result.terms,
        "distortions": result.distortions,
        "rates": result.rates,
        "indices": indices,
        "images": result.images,
    }
    say("\n".join(_table(result, middle, source, facts["trained_on_these"])))
    need = extras.missing("plots")
    figures = {"bits_per_dim.png": plots.bits_by_term}
    if np.isfinite(result.terms).all():
        figures["rate_distortion.png"] = plots.rate_distortion
    if out:
        (out / "rate_distortion.png").unlink(missing_ok=True)  # of an earlier result, where this one has none
        _write_json(out / "bits_per_dim.json", content)
        for name, draw in figures.items() if need is None else ():
            draw(result, out / name)
    say(f"bits_per_dim.json {f'(the figure {need})' if need else 'and ' + ' and '.join(figures)} in {out}")
    return content


def _ode_bits_per_dim(model: DiffusionModel, source: data.ImageData, indices, facts, options, out, say) -> dict:
    """Compute the bits by the ODE; unless `out` is None, write a JSON file; pass a line to `say`."""
    options = {name: options[name] for name in (*_OPTIONS["ode_bits_per_dim"], "seed", "batch_size", "verbose")}
    result = likelihood.ode_bits_per_dim(model, *_images(model, source, indices), **options)
    content = {
        **facts,
        **{name: options[name] for name in _OPTIONS["ode_bits_per_dim"]},
        "num_images": len(result.images),
        **{name: value for name, value in dataclasses.asdict(result).items() if name != "images"},
        "peak_bytes": memory.peak(),
        "indices": indices,
        "images": result.images,
    }
    say(f"{_heading(result, source, facts['trained_on_these'])}, by the probability-flow ODE\n  {result}")
    if out:
        _write_json(out / "ode_bits_per_dim.json", content)
    say(f"ode_bits_per_dim.json in {out}")
    return content


METRICS: dict[str, Callable] = {"bits_per_dim": _bits_per_dim, "ode_bits_per_dim": _ode_bits_per_dim}


def _images(model: DiffusionModel, source: data.ImageData, indices) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the chosen images, and their labels where the network has classes."""
    images, labels = source.images, source.labels if model.network.num_classes else None
    if indices is None:
        return images, labels
    return images[indices], None if labels is None else labels[indices]


def _heading(result, source, trained_on_these) -> str:
    return f"Bits per dimension of {len(result.images):,} of {len(source.images):,} images of {source.source}" + (
        ", which the run was trained on" if trained_on_these else ""
    )


def _table(result: BitsPerDim, middle: float, source: data.ImageData, trained_on_these: bool):
    yield _heading(result, source, trained_on_these)
    last = len(result.terms) - 1
    rows = {
        "total": f"{result.total:.4f} +- {result.standard_error:.4f}{result.share_of_sampling}",
        **({} if result.trajectories is None else {"one trajectory": f"{result.elbo:.4f}"}),
        f"prior, L_{last + 1}": f"{result.prior:.4f}",
        f"L_1 .. L_{last}": f"{middle:.4f}",
        "decoder, L_0": f"{result.terms[0]:.4f}",
        "time per image": f"{result.seconds_per_image:.3g} s",
    }
    if math.isfinite(result.bytes_per_image):
        rows["memory"] = f"{result.bytes_per_image / 1e6:.3g} MB for each image of a batch"
    rows["peak memory"] = f"{memory.peak() / 1e6:,.0f} MB"
    if np.isfinite(result.terms).all() and result.distortions is not None:
        for t in np.unique(np.linspace(last, 0, 5).round().astype(int))[::-1]:
            rows[f"down to x_{t}"] = f"{result.rates[t]:.4f}, x_0 known to {result.distortions[t]:.2f} grey levels"
    for name, text in rows.items():
        yield f"  {name:<15} {text}"


def _check_place(path: pathlib.Path, facts: dict, options: dict, overwrite: bool) -> None:
    """Check that a result may be written at `path`.

    Raises:
        InputError: a result of another question is there, and `overwrite` is False.
    """
    if overwrite or not path.exists():
        return
    try:
        before = read_json(path)
        other = [name for name in _QUESTION if before[name] != facts[name]]
        # Older results lack options that came later, which were None.
        other += [name for name, value in options.items() if before.get(name) != value]
    except (OSError, ValueError, KeyError, TypeError):
        other = ["format"]
    if other:
        raise InputError(
            "out",
            f"has a result of another {' and '.join(other)}; name another folder, or {{overwrite}} it",
            path,
            overwrite=...,
        )


def _check(source: data.ImageData, config: TrainConfig, trained_on: dict) -> None:
    """Check that the images are unaltered and their classes are the run's.

    Raises:
        InputError: they are not.
    """
    if source.altered:
        height, width, channels = trained_on["image_shape"]
        kinds = sorted(source.altered.items(), key=lambda item: -item[1])
        text = ", ".join(f"{count:,} {done}" for done, count in kinds[:_MOST_KINDS])
        more = ", ..." if len(kinds) > _MOST_KINDS else ""
        raise InputError(
            "dataset",
            f"must hold {'grey' if channels == 1 else 'RGB'} images of {width}x{height} to be taken as they are: an "
            "image that was resized has other bits to code",
            f"{source.source}, with {sum(source.altered.values()):,} of {len(source.images):,} changed ({text}{more})",
        )
    if config.num_classes is None:
        return
    if source.labels is None:
        raise InputError("dataset", f"must have labels, as the run has {config.num_classes} classes", source.source)
    expected, received = trained_on["class_names"], list(source.class_names)
    numbers = [str(i) for i in range(len(received))]
    if len(received) > config.num_classes or received not in (expected[: len(received)], numbers):
        raise InputError(
            "dataset", f"must have the run's classes, {_shown(expected)}", f"{source.source}, with {_shown(received)}"
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


def _chosen(count: int, max_images: int | None, seed: int) -> np.ndarray | None:
    """Return the indices of the images to evaluate, in increasing order; None = all."""
    if max_images is None or max_images >= count:
        return None
    if max_images < 1:
        raise InputError("max_images", "must be at least 1", max_images)
    return np.sort(np.random.default_rng(seed % 2**32).permutation(count)[:max_images])


def _write_json(path: pathlib.Path, content: dict) -> None:
    """Write JSON with one key a line, arrays as lists, and null for NaN and infinities."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return [plain(item) for item in value.tolist()]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    lines = (f"  {json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}" for key, value in content.items())
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
