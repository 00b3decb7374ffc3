"""Figures of pictures as they come about: what is decided at which noise level."""

import os
from typing import Any

import numpy as np

from kddpm.plots import style

_STD = 0.05  # of the noise on the digits, so that they have a density
_STEPS = 250


def progressive(
    path: str | os.PathLike,
    timesteps: tuple[int, ...] = (999, 799, 599, 499, 399, 299, 199, 99),
    seed: int = 3,
    ends: tuple[int, int] = (3, 4),
) -> None:
    """Draw how a picture comes about, as a PNG: figures 6, 7 and 8 of Ho et al. 2020 on digits.

    A column is a t. From above: x_t, and the x_0 predicted from it; three pictures that share x_t; what lies half way
    between two digits, noised to t. The network is the best one for the shipped digits, in closed form.

    Args:
        path: path of the PNG.
        timesteps: t of the columns, of T = 1000 on the cosine schedule; decreasing, among those that 250 steps visit.
        seed: of the picture above.
        ends: indices of the digits to interpolate.
    """
    from kddpm import data, toy
    from kddpm.data import images
    from kddpm.model.diffusion_model import DiffusionModel
    from kddpm.theory import schedules

    digits = data.load("digits", progress=False).images
    means = np.asarray(images.to_float(digits)).reshape(len(digits), -1)
    mixture = toy.Mixture(np.ones(len(means)), means, np.full(len(means), _STD**2))
    schedule = schedules.cosine(1000)
    model = DiffusionModel(toy.MixtureNetwork(digits.shape[1:], schedule, mixture), schedule)
    common: dict[str, Any] = {"num_steps": _STEPS, "verbose": False}
    _, noisy = model.generate([seed], return_trajectory="x_t", frames=timesteps, **common)
    _, guessed = model.generate([seed], return_trajectory="x0", frames=timesteps, **common)
    sisters = [model.shared_until(range(seed, seed + 4), t, **common)[1:] for t in timesteps]
    a, b = digits[list(ends)]
    between = [model.interpolate(a, b, 3, t=t, **common)[1] for t in timesteps]

    rows = [noisy[:, 0], guessed[:, 0], *np.swapaxes(sisters, 0, 1), between]
    labels = ["$x_t$", r"$\hat x_0$ from it", "same $x_t$,", "other noise", "below t", "half way"]
    figure, grid = style.subplots(9, 6.1, columns=len(timesteps) + 1, rows=len(rows))
    last = [noisy[-1, 0], guessed[-1, 0], None, None, None, None]
    for row, label, pictures, end in zip(grid, labels, rows, last, strict=True):
        row[0].set_ylabel(label, fontsize=10, rotation=0, ha="right", va="center")
        for axes, picture in zip(row, [*pictures[: len(timesteps)], end], strict=True):
            axes.set(xticks=[], yticks=[])
            if picture is None:
                axes.set_visible(False)
                continue
            axes.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=255)
    for axes, t in zip(grid[0], timesteps, strict=False):
        axes.set_title(f"t = {t}", fontsize=10)
    grid[0, -1].set_title("picture", fontsize=10)
    for axes, end, name in zip(grid[-1, -1:], [a], ["ends"], strict=True):
        axes.set_visible(True)
        axes.set_title(name, fontsize=10)
        axes.imshow(np.concatenate([end, np.full((8, 1, 1), 255, np.uint8), b], axis=1)[..., 0], cmap="gray")
    style.save(figure, path)
