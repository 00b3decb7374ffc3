"""Figures of chains of latents and their bound: from the VAE to diffusion, and training by each estimator."""

import os
from typing import TYPE_CHECKING

import numpy as np

from kddpm.plots import style
from kddpm.plots.theory import ESTIMATOR_LOOKS

if TYPE_CHECKING:
    from kddpm.toy.vae import Compared


def vae_to_diffusion(
    path: str | os.PathLike, plane: str = "points", measured: "tuple[list[Compared], float] | None" = None
) -> None:
    """Draw points of five models from the VAE to a diffusion model, with bound and weights of each, as a PNG.

    Args:
        path: path of the PNG.
        plane: "points" or "moons".
        measured: what `toy.compare` returns for it; None = call that, which takes half a minute.
    """
    from kddpm import toy as kd_toy

    drawn = kd_toy.BY_NAME[plane]
    rows, exact = measured or kd_toy.compare(drawn)
    figure, grid = style.subplots(10, 7.3, columns=3, rows=2)
    panels = [
        ("the data", drawn.draw(len(rows[0].points), seed=2), f"exact: {exact:.2f} nats per dimension", style.INK)
    ]
    colours = (style.ORANGE, style.RED, style.PURPLE, style.SKY, style.BLUE)
    for row, colour in zip(rows, colours, strict=True):
        count = f"{row.networks} network{'s' if row.networks > 1 else ''}, {row.weights:,} weights"
        panels.append((row.name, row.points, f"bound: {row.bound:.2f}\n{count}", colour))
    for axes, (name, points, below, colour) in zip(grid.flat, panels, strict=True):
        axes.scatter(*points.T, s=3, linewidths=0, color=colour)
        axes.set(xlim=(-18, 18), ylim=(-15, 15), aspect="equal", xticks=[], yticks=[], xlabel=below)
        axes.set_title(name, fontsize=11)
        for spine in axes.spines.values():
            spine.set_color(style.FAINT)
    style.save(figure, path)


def learning_curves(path: str | os.PathLike, measured: tuple[np.ndarray, dict[str, np.ndarray]] | None = None) -> None:
    """Plot the held-out bound against network calls for training by each of the three estimators, as a PNG.

    Args:
        path: path of the PNG.
        measured: what `toy.learning_curves` returns; None = call that for four points, which takes half a minute.
    """
    from kddpm import toy as kd_toy

    plane = kd_toy.BY_NAME["points"]
    calls, curves = measured or kd_toy.learning_curves(plane)
    floor = kd_toy.exact_nats(plane, plane.draw(500, seed=1))
    figure, axes = style.subplots(7.2, 4.3)
    for name, rows in curves.items():
        label, colour, _ = ESTIMATOR_LOOKS[name]
        above = rows - floor
        axes.plot(calls[1:], above[:, 1:].T, color=colour, linewidth=0.7, alpha=0.5)
        axes.plot(calls[1:], above[:, 1:].mean(axis=0), color=colour, linewidth=2.2, label=label.split(":")[0])
    axes.set(yscale="log", xlabel="network calls", ylabel="held-out bound above the exact value,\nnats per dimension")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    style.save(figure, path)
