"""Figures of a run: its loss, the quality of its pictures, the terms of its bits per dimension, and its health."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.plots import style

if TYPE_CHECKING:
    from kddpm.evaluation.likelihood import BitsPerDim


def loss_curve(rows: list[dict], path: str | os.PathLike) -> None:
    """Plot the loss of a run against the step, as a PNG: every row faint, and the mean over the last tenth of the rows.

    Args:
        rows: rows of metrics.csv, with `step` and `loss`; rows whose steps were all skipped are left out.
        path: path of the PNG; it is written to a temporary file and renamed.
    """
    rows = [row for row in rows if np.isfinite(float(row["loss"]))]
    if not rows:
        return
    steps = np.array([int(row["step"]) for row in rows])
    losses = np.array([float(row["loss"]) for row in rows])
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    end = np.arange(1, len(losses) + 1)
    first = end - np.maximum(end // 10, 1)
    smooth = (sums[end] - sums[first]) / (end - first)

    figure, axes = style.subplots(7, 4)
    axes.plot(steps, losses, color=style.BLUE, alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color=style.BLUE, linewidth=2)
    axes.set(xlabel="training step", ylabel="loss, per pixel", yscale="log")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.grid(alpha=0.3, which="both")
    style.save(figure, path)


def frechet_curve(rows: Sequence[dict], best: Mapping, path: str | os.PathLike) -> None:
    """Plot the Frechet distances of a run against the step, with their standard errors, as a PNG.

    Args:
        rows: of frechet.json, with `step`, `frechet` and `frechet_standard_error`.
        best: the lowest of them, which gets a ring.
        path: path of the PNG.
    """
    steps, values, errors = (
        np.array([row[name] for row in rows]) for name in ("step", "frechet", "frechet_standard_error")
    )
    figure, axes = style.subplots(7, 4)
    axes.errorbar(steps, values, yerr=errors, color=style.BLUE, marker="o", markersize=4, capsize=3)
    ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "linestyle": "none"}
    label = f"the lowest, in best/: {best['frechet']:.3g} of step {best['step']}"
    axes.plot(best["step"], best["frechet"], color=style.RED, label=label, **ring)
    axes.set(xlabel="training step", ylabel="Frechet distance", yscale="log")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    style.save(figure, path)


def bits_by_term(result: "BitsPerDim", path: str | os.PathLike) -> None:
    """Plot the terms of the bits per dimension against t, and their cumulative sum, as a PNG.

    Args:
        result: a `kddpm.BitsPerDim`. Terms that were not drawn, NaN, are left out; in the sum they are interpolated.
        path: path of the PNG.

    Raises:
        InputError: the result has no L_0.
    """
    terms, last = np.asarray(result.terms, np.float64), len(result.terms)
    drawn = np.flatnonzero(np.isfinite(terms))
    if not drawn.size or drawn[0] != 0:
        raise InputError("result", "must have a finite first term, L_0", terms[:1])
    inner, middle = drawn[1:], result.elbo - terms[0] - result.prior
    between = np.arange(1, last)
    known = np.interp(between, inner, terms[inner]) if inner.size else np.zeros(last - 1)
    so_far = np.cumsum(known) * (middle / known.sum() if inner.size else 1)
    shares = 100 * (terms[0] + np.concatenate([[0.0], so_far])) / result.elbo

    figure, (left, right) = style.subplots(10, 3.9, columns=2)
    marker = "o" if len(inner) <= 100 else None
    left.plot(inner, terms[inner], color=style.BLUE, linewidth=1.5, marker=marker, markersize=4, markeredgewidth=0)
    marks = (
        (left, 0, terms[0], style.RED, "s", "$L_0$, the decoder"),
        (left, last, result.prior, style.GREEN, "D", "$L_T$"),
    )
    for axes, at, value, colour, marker, name in marks:
        label = f"{name}: {_readable(value)} bits"
        axes.plot(at, value, color=colour, marker=marker, markersize=8, linestyle="none", label=label)
    left.plot([], [], color=style.BLUE, label=f"$L_t$, 0 < t < {last}: {_readable(middle)} bits")
    left.set(ylabel="bits per dimension of one term", yscale="log", title="The terms of the bound")
    left.legend(frameon=False, loc="best")
    right.step([0, *between, last], [*shares, 100], where="post", color=style.BLUE, linewidth=1.8)
    right.plot(0, shares[0], color=style.RED, marker="s", markersize=8, linestyle="none")
    right.set(
        ylabel="share of the bound up to t, %", ylim=(0, 103), title=f"Their sum: {result.elbo:.3f} bits per dimension"
    )
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)  # so that t = 0 has a place
        axes.set(xlabel="t", xlim=(-0.15, last * 1.3))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.25)
    style.save(figure, path)


def _readable(value: float) -> str:
    """Format a value with two digits, and a power of ten if needed."""
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return rf"${mantissa}\cdot10^{{{int(exponent)}}}$" if exponent else mantissa


def quality(rows: Sequence[dict], columns: Mapping[str, tuple[str, float]], path: str | os.PathLike) -> None:
    """Plot the rows of quality.json, as a PNG: a panel for each column, with standard errors; the first row as a line.

    Args:
        rows: with a `name` each; the first is that of real pictures.
        columns: {key: (heading, factor)} of the numbers, which a row may lack; KEY_chance, a level of KEY that chance
            gives, is a cross beside it.
        path: path of the PNG.
    """
    shown = [key for key in columns if not key.endswith("_chance") and any(key in row for row in rows)]
    names = [row["name"] for row in rows]
    height = 1.2 + 0.32 * len(rows)
    figure, panels = style.subplots(2.6 + 1.7 * len(shown), height, columns=len(shown))
    for axes, key in zip(np.ravel(panels), shown, strict=True):
        heading, factor = columns[key]
        for place, row in enumerate(rows):
            if key not in row:
                continue
            error = row.get(f"{key}_standard_error", math.nan)
            look = {"color": style.INK if place == 0 else style.BLUE, "marker": "o", "markersize": 5, "capsize": 3}
            axes.errorbar(factor * row[key], place, xerr=None if math.isnan(error) else factor * error, **look)
            if f"{key}_chance" in row:
                axes.plot(factor * row[f"{key}_chance"], place, color=style.RED, marker="x", linestyle="none")
                heading = f"{columns[key][0]}\nx = by chance"
            if place == 0:
                axes.axvline(factor * row[key], color=style.FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
        axes.set(title=heading, ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
        axes.set_yticklabels(names if axes is np.ravel(panels)[0] else [])
        axes.grid(alpha=0.25)
        axes.margins(x=0.15)
    style.save(figure, path)


def health(losses: Mapping[str, np.ndarray], painted: np.ndarray, real: np.ndarray, path: str | os.PathLike) -> None:
    """Plot the losses of a run at some t, and its pictures beside real ones, as a PNG.

    Args:
        losses: one value a t of "t", "average", "weights", "linear_denoiser", "zeros" and perhaps "held_out".
        painted: generated pictures, uint8 (N, H, W, C).
        real: others, uint8 (M, H, W, C).
        path: path of the PNG.
    """
    lines = {
        "zeros": ("an output of zeros", style.FAINT, ":"),
        "linear_denoiser": ("best linear denoiser", style.ORANGE, "--"),
        "weights": ("weights", style.SKY, "-"),
        "held_out": ("average, held out", style.RED, "-"),
        "average": ("average", style.BLUE, "-"),
    }
    figure, (left, middle, right) = style.subplots(11, 3.7, columns=3)
    for name, (label, colour, line) in lines.items():
        if name in losses:
            left.plot(losses["t"], losses[name], label=label, color=colour, linestyle=line, marker=".")
    left.set(xlabel="t", ylabel="loss, per pixel", yscale="log", title="Loss at some t")
    shown = [value for name in ("average", "weights") for value in losses[name] if 0 < value < math.inf]
    if shown:
        left.set_ylim(min(shown) / 3, None)  # a linear denoiser's may be far below
    left.legend(frameon=False, fontsize=8)
    left.grid(alpha=0.25)
    for axes, pictures, title in ((middle, painted, "Generated"), (right, real, "Real")):
        grid = images.grid(pictures)
        axes.imshow(grid[..., 0] if grid.shape[-1] == 1 else grid, cmap="gray", vmin=0, vmax=255)
        axes.set(title=title)
        axes.set_axis_off()
    style.save(figure, path)
