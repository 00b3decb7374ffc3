"""Figures of what bits buy: rate and distortion, and the bound that K trajectories tighten."""

import math
import os
from typing import TYPE_CHECKING

import numpy as np

from kddpm.base.errors import InputError
from kddpm.plots import style

if TYPE_CHECKING:
    from kddpm.evaluation.likelihood import BitsPerDim


def rate_distortion(result: "BitsPerDim", path: str | os.PathLike, std: float | None = None) -> None:
    """Plot distortion and rate against the reverse steps, and one against the other, as a PNG.

    This is figure 5 of Ho et al. 2020: whoever has received `result.rates[t]` bits knows x_t, and with it x_0 up to
    `result.distortions[t]`.

    Args:
        result: a `kddpm.BitsPerDim` with all its terms.
        path: path of the PNG.
        std: deviation of Gaussian data, whose rate-distortion function is then drawn too.

    Raises:
        InputError: some terms are missing.
    """
    rates, distortions = result.rates[::-1], result.distortions
    if distortions is None or not np.isfinite(rates).all():
        raise InputError("result", "must have all its terms and distortions", f"{np.isnan(result.terms).sum()} missing")
    distortions, steps = distortions[::-1], np.arange(len(rates))
    figure, (left, middle, right) = style.subplots(10, 3.7, columns=3)
    look = {"color": style.BLUE, "linewidth": 1.8}
    left.plot(steps, distortions, **look)
    middle.plot(steps, rates, **look)
    right.plot(rates, distortions, label="the model", **look)
    whole = {"color": style.RED, "marker": "s", "markersize": 7, "linestyle": "none"}
    left.plot(len(steps), 0, **whole)
    middle.plot(len(steps), result.elbo, **whole)
    right.plot(result.elbo, 0, label="with $L_0$: all of it", **whole)
    if std is not None:
        curve = np.linspace(0, rates[-1], 200)
        label = r"$127.5\,\sigma\,2^{-R}$, the least"
        right.plot(
            curve, 127.5 * std * 2**-curve, color=style.ORANGE, linestyle=(0, (4, 3)), linewidth=1.8, label=label
        )
    right.legend(frameon=False)
    error, bits = "root mean square error of $x_0$, grey levels", "bits per dimension so far"
    left.set(title="Distortion", ylabel=error, xlabel="reverse steps taken")
    middle.set(title="Rate", ylabel=bits, xlabel="reverse steps taken")
    right.set(title="Distortion against rate", ylabel=error, xlabel=bits)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.margins(x=0.03)
        axes.set_ylim(bottom=0 if axes is middle else None)
    style.save(figure, path)


_CHAINS = (  # variance, width of the images, colour, marker
    ("small", 2, style.RED, "^"),
    ("large", 4, style.ORANGE, "s"),
    ("large", 2, style.BLUE, "o"),
)


def trajectory_bound(
    path: str | os.PathLike, num_timesteps: int = 100, trajectories: int = 64, images: int = 64
) -> None:
    """Plot how far the K-sample bound lies above the exact bits of Gaussian chains, against K, as a PNG.

    Args:
        path: path of the PNG.
        num_timesteps: T, of the linear schedule respaced by `timestep_grid`, "quadratic".
        trajectories: the largest K, a power of two.
        images: number of images.
    """
    sizes = 2 ** np.arange(int(math.log2(trajectories)) + 1)
    figure, axes = style.subplots(7, 4.1)
    for variance, width, colour, marker in _CHAINS:
        excess = _excess_bits(num_timesteps, variance, width, images, sizes)
        label = rf"$\sigma_t^2$ {variance}, {width * width} pixels"
        error = excess.std(axis=1, ddof=1) / math.sqrt(images)
        look = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.8, "capsize": 3}
        axes.errorbar(sizes, excess.mean(axis=1), error, label=label, **look)
    axes.axhline(0, color=style.INK, linestyle=(0, (4, 3)), linewidth=1.2, label="exact")
    axes.set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="trajectories K of each image")
    axes.set(ylabel="bits per dimension above the exact value")
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    style.save(figure, path)


def _excess_bits(num_timesteps, variance, width, images, sizes) -> np.ndarray:
    """Return how far the bound of that many trajectories lies above the exact bits of each image, (sizes, images)."""
    from kddpm import toy as kd_toy
    from kddpm.evaluation import trajectories as kd_trajectories
    from kddpm.model.diffusion_model import DiffusionModel
    from kddpm.theory import schedules as kd_schedules

    mean, std, shape = 0.0, 0.2, (width, width, 1)
    fine = kd_schedules.linear()
    kept = kd_schedules.timestep_grid(fine, num_timesteps, "quadratic")
    schedule = kd_schedules.NoiseSchedule(fine.respace(kept).betas)
    network = kd_toy.GaussianNetwork(shape, schedule, mean, std, learned_variance=False)
    model = DiffusionModel(network, schedule, variance=variance)
    drawn = kd_toy.gaussian_images(images, shape, mean, std)
    result = model.bits_per_dim(drawn, num_trajectories=int(sizes[-1]), clip=False, verbose=False)
    exact = kd_toy.gaussian_chain_bits(schedule, drawn, mean, std, variance)
    nats, dimensions = np.asarray(result.trajectories) * math.log(2), width * width
    bounds = [kd_trajectories.bound_from_weights_nats(nats, dimensions, size) for size in sizes]
    return np.array(bounds) / math.log(2) - exact
