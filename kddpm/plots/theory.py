"""Figures of the theory: schedules, the forward process, points in the plane, the bound and its estimators."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from kddpm.base.errors import InputError
from kddpm.plots import style

if TYPE_CHECKING:
    from kddpm.evaluation.likelihood import BitsPerDim
    from kddpm.model.diffusion_model import DiffusionModel


def schedules(path: str | os.PathLike, num_timesteps: int = 1000) -> None:
    """Plot signal, noise and log-SNR of every schedule against t, as a PNG.

    Args:
        path: path of the PNG.
        num_timesteps: T.
    """
    from kddpm.theory import schedules as kd_schedules

    colours = (style.BLUE, style.RED, style.GREEN, style.PURPLE, style.ORANGE, style.INK, style.GREY, style.BROWN)
    lines: list[tuple[str, kd_schedules.NoiseSchedule, str, Any]] = [
        (name, kd_schedules.by_name(name, num_timesteps), colour, "-")
        for name, colour in zip(kd_schedules.BY_NAME, colours, strict=True)
    ]
    zero = kd_schedules.zero_terminal_snr(lines[0][1])
    lines.append(("linear, zero terminal SNR", zero, style.SKY, (0, (2, 1.5))))

    figure, (signal, noise, snr) = style.subplots(9.4, 3.3, columns=3)
    for name, schedule, colour, dashes in lines:
        kept, lost = schedule.alpha_bars, schedule.one_minus_alpha_bars
        with np.errstate(divide="ignore"):  # minus infinity without signal, which is not drawn
            log_snr = np.log(kept) - np.log(lost)
        for axes, values in ((signal, np.sqrt(kept)), (noise, np.sqrt(lost)), (snr, log_snr)):
            axes.plot(values, color=colour, linestyle=dashes, linewidth=1.8, label=name if axes is signal else None)
    signal.set(title="Signal", ylabel=r"$\sqrt{\bar\alpha_t}$, share of the amplitude", ylim=(-0.03, 1.03))
    noise.set(title="Noise", ylabel=r"$\sqrt{1-\bar\alpha_t}$, standard deviation", ylim=(-0.03, 1.03))
    snr.set(title="Signal to noise", ylabel=r"$\log\,\bar\alpha_t / (1-\bar\alpha_t)$, nats", ylim=(-14, 10.5))
    snr.axhline(0, color=style.FAINT, linewidth=1, zorder=0)
    for axes in (signal, noise, snr):
        ends = np.linspace(0, num_timesteps - 1, 4).round().astype(int)
        axes.set(xlabel="t", xlim=(0, num_timesteps - 1), xticks=ends)
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=-(-len(lines) // 2), frameon=False, columnspacing=1.4)
    style.save(figure, path)


def forward(
    path: str | os.PathLike,
    image: int = 0,
    names: tuple[str, ...] = ("linear", "quadratic", "cosine"),
    timesteps: tuple[int, ...] = (25, 50, 100, 200, 300, 450, 600, 800, 999),
) -> None:
    """Draw the forward process on a digit as a PNG: one row per schedule, t from left to right, always the same noise.

    Args:
        path: path of the PNG.
        image: index of the digit in the shipped data.
        names: names of schedules, T = 1000.
        timesteps: t of the columns after the digit itself.
    """
    from kddpm import data
    from kddpm.data import images
    from kddpm.theory import schedules as kd_schedules
    from kddpm.theory.process import GaussianDiffusion

    x_0 = np.asarray(images.to_float(data.load("digits", progress=False).images[image : image + 1]))
    noise = np.random.default_rng(0).normal(size=x_0.shape).astype(np.float32)
    figure, grid = style.subplots(10, 1.13 * len(names) + 0.45, columns=len(timesteps) + 1, rows=len(names))
    for row, name in zip(grid, names, strict=True):
        schedule = kd_schedules.by_name(name)
        diffusion = GaussianDiffusion(schedule)
        for column, axes in enumerate(row):
            t = (-1, *timesteps)[column]
            x_t = x_0 if t < 0 else diffusion.q_sample(x_0, np.array([t]), noise)
            percent = 100 if t < 0 else 100 * np.sqrt(schedule.alpha_bars[t])
            axes.imshow(np.asarray(x_t)[0, ..., 0], cmap="gray", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[], xlabel=f"{percent:{_percent_format(percent)}} %")
            axes.xaxis.labelpad = 2
            if axes in grid[0]:
                axes.set_title("$x_0$" if t < 0 else f"t = {t}", fontsize=10)
            for spine in axes.spines.values():
                spine.set_color(style.FAINT)
        row[0].set_ylabel(name, fontsize=11)
    figure.supxlabel(r"below each: signal left, $\sqrt{\bar\alpha_t}$", fontsize=10)
    style.save(figure, path)


def _percent_format(percent: float) -> str:
    if percent < 10:
        return ".1g"
    return ".1f" if 99.5 <= percent < 100 else ".0f"


def toy(
    plane: str, path: str | os.PathLike, model: "DiffusionModel | None" = None, count: int = 500, frames: int = 26
) -> None:
    """Draw points in the plane that q turns into noise, and noise that the ancestral sampler turns into points; a GIF.

    A point has the colour of the part where it starts, and on the way back of the part where it ends.

    Args:
        plane: "points" or "moons".
        path: path of the GIF.
        model: a `DiffusionModel` of points in the plane; None = train one, which takes some seconds.
        count: number of points.
        frames: number of frames of each direction.
    """
    from kddpm import toy as kd_toy
    from kddpm.data import images

    if plane not in kd_toy.BY_NAME:
        raise InputError("plane", f"must be one of {', '.join(kd_toy.BY_NAME)}", repr(plane))
    drawn = kd_toy.BY_NAME[plane]
    model = model or kd_toy.train(drawn)
    down = kd_toy.forwards(model.schedule, drawn.draw(count, seed=1))
    up = kd_toy.backwards(model, range(count))
    steps = model.schedule.num_timesteps

    figure, axes = style.subplots(3.5, 3.9, dpi=96)
    axes.set(xlim=(-28, 28), ylim=(-28, 28), aspect="equal", xticks=range(-20, 21, 10), yticks=range(-20, 21, 10))
    axes.tick_params(labelsize=8, color=style.FAINT)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    dots = axes.scatter(*down[0].T, s=8, linewidths=0)
    title = axes.set_title("two\nlines", fontsize=10, loc="left")
    figure.canvas.draw()
    figure.set_layout_engine("none")  # nothing moves from frame to frame
    hues = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE)[: drawn.parts]
    shots = []
    for name, way, taken, ends in (
        ("Forwards: q adds noise", down, range(steps + 1), down[0]),
        ("Backwards: the network removes it", up, range(steps, -1, -1), up[-1]),
    ):
        dots.set_color(np.array(hues)[drawn.nearest(ends)[0]])
        for i in np.unique(np.linspace(0, steps, frames).round().astype(int)):
            dots.set_offsets(way[i])
            title.set_text(f"{name}\nnoise level {taken[i]} of {steps}")
            shots.append(style.pixels(figure))
        shots += 6 * shots[-1:]  # pause where the direction changes
    images.save_gif(path, style.few_colours(shots, hues), duration_ms=90, hold_ms=1200)


def gaussian_bits() -> "BitsPerDim":
    """Return the `BitsPerDim` of the optimal network for pixels N(0, 0.2^2), rounded to uint8, on 64 such images."""
    from kddpm import toy as kd_toy
    from kddpm.model.diffusion_model import DiffusionModel
    from kddpm.theory import schedules as kd_schedules

    schedule, shape, mean, std = kd_schedules.linear(), (8, 8, 1), 0.0, 0.2
    network = kd_toy.GaussianNetwork(shape, schedule, mean, std)
    model = DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    return model.bits_per_dim(kd_toy.gaussian_images(64, shape, mean, std), clip=False)


ESTIMATOR_LOOKS = {
    "trajectory": ("a whole trajectory: T network calls", style.ORANGE, "s"),
    "pair": ("one pair $x_{t-1}, x_t$: 1 network call", style.RED, "^"),
    "one_sample": ("one $x_t$, KL in closed form: 1 network call", style.BLUE, "o"),
}


def estimators(path: str | os.PathLike, lengths: tuple[int, ...] = (10, 30, 100, 300), images: int = 2000) -> None:
    """Plot the variance of estimates of the bound against T, as a PNG: of the value, and of the gradient per call.

    Args:
        path: path of the PNG.
        lengths: values of T.
        images: as in `toy.estimator_variances`.
    """
    from kddpm import toy as kd_toy

    measured = [kd_toy.estimator_variances(length, images) for length in lengths]
    figure, (left, right) = style.subplots(10, 4.1, columns=2)
    for name, (label, colour, marker) in ESTIMATOR_LOOKS.items():
        values, gradients = np.array([row[name] for row in measured]).T
        calls = np.array(lengths) if name == "trajectory" else np.ones(len(lengths))
        look = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.8}
        left.plot(lengths, values, label=label, **look)
        right.plot(lengths, calls * gradients, **look)
    unit = "(nats per dimension)²"
    left.set(title="Value: one estimate", ylabel=f"variance, {unit}")
    right.set(title="Gradient: for the same number of network calls", ylabel=f"variance times calls, {unit}")
    for axes in (left, right):
        axes.set(xlabel="T", xscale="log", yscale="log", xticks=lengths, xticklabels=lengths)
        axes.xaxis.minorticks_off()
        axes.margins(y=0.12)
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    style.save(figure, path)
