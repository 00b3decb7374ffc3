"""Figures of a run."""

import os

import numpy as np

from kddpm.files import replacing


def loss_curve(rows: list[dict], path: str | os.PathLike) -> None:
    """The loss of a run against the step, as a PNG: every row faint, the mean over the last tenth of the way in front.

    Args:
        rows: of metrics.csv, with `step` and `loss`.
        path: where the PNG goes; written beside and renamed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = np.array([int(row["step"]) for row in rows])
    losses = np.array([float(row["loss"]) for row in rows])
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    end = np.arange(1, len(losses) + 1)
    first = end - np.maximum(end // 10, 1)
    smooth = (sums[end] - sums[first]) / (end - first)

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color="tab:blue", linewidth=2)
    axes.set(xlabel="training step", ylabel="L_simple, per pixel", yscale="log")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.grid(alpha=0.3, which="both")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
