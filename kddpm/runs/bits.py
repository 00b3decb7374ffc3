"""Bits per dimension of a run, as numbers, files and a table (`kddpm.runs.evaluate` says what is in them)."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from kddpm import data, plots
from kddpm.base import extras, memory
from kddpm.evaluation import likelihood
from kddpm.evaluation.likelihood import BitsPerDim
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs.results import write_json

OPTIONS = {  # of each metric, and part of its question
    "bits_per_dim": ("num_terms", "num_trajectories", "num_steps", "clip"),
    "ode_bits_per_dim": ("num_steps", "divergence", "dequantization", "clip"),
}


def _bits_per_dim(model: DiffusionModel, source: data.ImageData, indices, facts, options, out, say) -> dict:
    """Compute the bound; unless `out` is None, write a JSON file and figures of its terms; pass a table to `say`."""
    options = {name: options[name] for name in (*OPTIONS["bits_per_dim"], "seed", "batch_size", "verbose")}
    result = model.bits_per_dim(*_images(model, source, indices), **options)
    decoder = float(result.terms[0])
    middle = result.elbo - result.prior - decoder
    content = {
        **facts,
        **{name: options[name] for name in OPTIONS["bits_per_dim"]},
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
        write_json(out / "bits_per_dim.json", content)
        for name, draw in figures.items() if need is None else ():
            draw(result, out / name)
    say(f"bits_per_dim.json {f'(the figure {need})' if need else 'and ' + ' and '.join(figures)} in {out}")
    return content


def _ode_bits_per_dim(model: DiffusionModel, source: data.ImageData, indices, facts, options, out, say) -> dict:
    """Compute the bits by the ODE; unless `out` is None, write a JSON file; pass a line to `say`."""
    options = {name: options[name] for name in (*OPTIONS["ode_bits_per_dim"], "seed", "batch_size", "verbose")}
    result = likelihood.ode_bits_per_dim(model, *_images(model, source, indices), **options)
    content = {
        **facts,
        **{name: options[name] for name in OPTIONS["ode_bits_per_dim"]},
        "num_images": len(result.images),
        **{name: value for name, value in dataclasses.asdict(result).items() if name != "images"},
        "peak_bytes": memory.peak(),
        "indices": indices,
        "images": result.images,
    }
    say(f"{_heading(result, source, facts['trained_on_these'])}, by the probability-flow ODE\n  {result}")
    if out:
        write_json(out / "ode_bits_per_dim.json", content)
    say(f"ode_bits_per_dim.json in {out}")
    return content


BITS: dict[str, Callable] = {"bits_per_dim": _bits_per_dim, "ode_bits_per_dim": _ode_bits_per_dim}


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
