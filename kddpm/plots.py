"""Figures: of the theory, and of a run.

    python -m kddpm.plots                                             # all of them, into docs/figures
    python -m kddpm.plots --only=schedules,forward --out=figures

schedules     signal, noise and log-SNR of every noise schedule
forward       a digit on its way to noise
toy_points    four points in the plane turning into noise, and noise into points again (GIF)
toy_moons     the same of two half moons (GIF)
bits_by_term  where the bits per dimension of Gaussian data come from; of a run, see evaluate.py
estimators    how noisy three estimates of the variational bound are, and their gradients
"""

import gc
import os
import pathlib

import numpy as np

from kddpm.errors import InputError
from kddpm.files import check_output, replacing

# Okabe & Ito's colours, which all kinds of colour vision tell apart.
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
_INK, _FAINT = "#222222", "#BBBBBB"
_DPI = 110


def loss_curve(rows: list[dict], path: str | os.PathLike) -> None:
    """The loss of a run against the step, as a PNG: every row faint, the mean over the last tenth of the way in front.

    Args:
        rows: of metrics.csv, with `step` and `loss`; those of steps that were all skipped are left out.
        path: where the PNG goes; written beside and renamed.
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

    figure, axes = _subplots(7, 4)
    axes.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color=_BLUE, linewidth=2)
    axes.set(xlabel="training step", ylabel="loss, per pixel", yscale="log")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def schedules(path: str | os.PathLike, num_timesteps: int = 1000) -> None:
    """Signal, noise and log-SNR of every schedule against t, as a PNG.

    Args:
        path: where the PNG goes.
        num_timesteps: T.
    """
    from kddpm import schedules as kd_schedules

    lines = [
        (name, kd_schedules.by_name(name, num_timesteps), colour, "-")
        for name, colour in zip(kd_schedules.BY_NAME, (_BLUE, _RED, _GREEN, _PURPLE, _ORANGE), strict=True)
    ]
    zero = kd_schedules.zero_terminal_snr(lines[0][1])
    lines.append(("linear, zero terminal SNR", zero, _SKY, (0, (2, 1.5))))

    figure, (signal, noise, snr) = _subplots(10, 3.7, columns=3)
    for name, schedule, colour, style in lines:
        kept, lost = schedule.alpha_bars, schedule.one_minus_alpha_bars
        with np.errstate(divide="ignore"):  # minus infinity where nothing is left, which is not drawn
            log_snr = np.log(kept) - np.log(lost)
        for axes, values in ((signal, np.sqrt(kept)), (noise, np.sqrt(lost)), (snr, log_snr)):
            axes.plot(values, color=colour, linestyle=style, linewidth=1.8, label=name if axes is signal else None)
    signal.set(title="Signal", ylabel=r"$\sqrt{\bar\alpha_t}$, share of the amplitude", ylim=(-0.03, 1.03))
    noise.set(title="Noise", ylabel=r"$\sqrt{1-\bar\alpha_t}$, standard deviation", ylim=(-0.03, 1.03))
    snr.set(title="Signal to noise", ylabel=r"$\log\,\bar\alpha_t / (1-\bar\alpha_t)$, nats", ylim=(-14, 10.5))
    snr.axhline(0, color=_FAINT, linewidth=1, zorder=0)
    for axes in (signal, noise, snr):
        ends = np.linspace(0, num_timesteps - 1, 4).round().astype(int)
        axes.set(xlabel="t", xlim=(0, num_timesteps - 1), xticks=ends)
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=len(lines), frameon=False, columnspacing=1.4, handlelength=2.2)
    _save(figure, path)


def forward(
    path: str | os.PathLike,
    image: int = 0,
    names: tuple[str, ...] = ("linear", "quadratic", "cosine"),
    timesteps: tuple[int, ...] = (25, 50, 100, 200, 300, 450, 600, 800, 999),
) -> None:
    """The forward process on a digit: a row a schedule, time from left to right, the same noise all along; a PNG.

    Args:
        path: where the PNG goes.
        image: which of the shipped digits.
        names: schedules, T = 1000.
        timesteps: t of the columns after the digit itself.
    """
    from kddpm import data, images
    from kddpm import schedules as kd_schedules
    from kddpm.process import GaussianDiffusion

    x_0 = np.asarray(images.to_float(data.load("digits", progress=False).images[image : image + 1]))
    noise = np.random.default_rng(0).normal(size=x_0.shape).astype(np.float32)
    figure, grid = _subplots(10, 1.13 * len(names) + 0.45, columns=len(timesteps) + 1, rows=len(names))
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
                spine.set_color(_FAINT)
        row[0].set_ylabel(name, fontsize=11)
    figure.supxlabel(r"below each: signal left, $\sqrt{\bar\alpha_t}$", fontsize=10)
    _save(figure, path)


def _percent_format(percent: float) -> str:
    if percent < 10:
        return ".1g"
    return ".1f" if 99.5 <= percent < 100 else ".0f"


def toy(plane: str, path: str | os.PathLike, model=None, count: int = 500, frames: int = 26) -> None:
    """Points in the plane becoming noise by q, and noise becoming points by the ancestral sampler, as a GIF.

    Colours are those of the part that a point came from, and on the way back of the part that it ends at.

    Args:
        plane: "points" or "moons".
        path: where the GIF goes.
        model: a `DiffusionModel` of points in the plane; None = one trained for this, some seconds.
        count: of points.
        frames: of each way.
    """
    from kddpm import images
    from kddpm import toy as kd_toy

    if plane not in kd_toy.BY_NAME:
        raise InputError(f"`plane` must be one of {', '.join(kd_toy.BY_NAME)}. Received: {plane!r}")
    plane = kd_toy.BY_NAME[plane]
    model = model or kd_toy.train(plane)
    down = kd_toy.forwards(model.schedule, plane.draw(count, seed=1))
    up = kd_toy.backwards(model, range(count))
    steps = model.schedule.num_timesteps

    figure, axes = _subplots(3.5, 3.9, dpi=96)
    axes.set(xlim=(-28, 28), ylim=(-28, 28), aspect="equal", xticks=range(-20, 21, 10), yticks=range(-20, 21, 10))
    axes.tick_params(labelsize=8, color=_FAINT)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    dots = axes.scatter(*down[0].T, s=8, linewidths=0)
    title = axes.set_title("two\nlines", fontsize=10, loc="left")
    figure.canvas.draw()
    figure.set_layout_engine("none")  # nothing moves from frame to frame
    hues = (_BLUE, _ORANGE, _GREEN, _PURPLE)[: plane.parts]
    shots = []
    for name, way, taken, ends in (
        ("Forwards: q adds noise", down, range(steps + 1), down[0]),
        ("Backwards: the network removes it", up, range(steps, -1, -1), up[-1]),
    ):
        dots.set_color(np.array(hues)[plane.nearest(ends)[0]])
        for i in np.unique(np.linspace(0, steps, frames).round().astype(int)):
            dots.set_offsets(way[i])
            title.set_text(f"{name}\nnoise level {taken[i]} of {steps}")
            shots.append(_pixels(figure))
        shots += 6 * shots[-1:]  # rest where the way turns
    images.save_gif(path, _few_colours(shots, hues), duration_ms=90, hold_ms=1200)


def bits_by_term(result, path: str | os.PathLike) -> None:
    """Where the bits per dimension come from: the terms of the bound against t, and their sum so far; a PNG.

    Args:
        result: a `kddpm.BitsPerDim`. Terms that were not drawn, NaN, are left out; their share of the sum is what
            their neighbours say.
        path: where the PNG goes.

    Raises:
        InputError: no L_0 among the terms.
    """
    terms, last = np.asarray(result.terms, np.float64), len(result.terms)
    drawn = np.flatnonzero(np.isfinite(terms))
    if not drawn.size or drawn[0] != 0:
        raise InputError(f"`result` must have a finite first term, L_0. Received: {terms[:1]}")
    inner, middle = drawn[1:], result.total - terms[0] - result.prior
    between = np.arange(1, last)
    known = np.interp(between, inner, terms[inner]) if inner.size else np.zeros(last - 1)
    so_far = np.cumsum(known) * (middle / known.sum() if inner.size else 1)
    shares = 100 * (terms[0] + np.concatenate([[0.0], so_far])) / result.total

    figure, (left, right) = _subplots(10, 3.9, columns=2)
    marker = "o" if len(inner) <= 100 else None
    left.plot(inner, terms[inner], color=_BLUE, linewidth=1.5, marker=marker, markersize=4, markeredgewidth=0)
    marks = ((left, 0, terms[0], _RED, "s", "$L_0$, the decoder"), (left, last, result.prior, _GREEN, "D", "$L_T$"))
    for axes, at, value, colour, marker, name in marks:
        label = f"{name}: {_readable(value)} bits"
        axes.plot(at, value, color=colour, marker=marker, markersize=8, linestyle="none", label=label)
    left.plot([], [], color=_BLUE, label=f"$L_t$, 0 < t < {last}: {_readable(middle)} bits")
    left.set(ylabel="bits per dimension of one term", yscale="log", title="The terms of the bound")
    left.legend(frameon=False, loc="best")
    right.step([0, *between, last], [*shares, 100], where="post", color=_BLUE, linewidth=1.8)
    right.plot(0, shares[0], color=_RED, marker="s", markersize=8, linestyle="none")
    right.set(
        ylabel="share of the bound up to t, %", ylim=(0, 103), title=f"Their sum: {result.total:.3f} bits per dimension"
    )
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)  # so that t = 0 has a place
        axes.set(xlabel="t", xlim=(-0.15, last * 1.3))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.25)
    _save(figure, path)


def gaussian_bits():
    """The `BitsPerDim` of the best network for Gaussian pixels, N(0, 0.2^2) rounded to uint8, on 64 such images."""
    from kddpm import schedules as kd_schedules
    from kddpm import toy as kd_toy
    from kddpm.model import DiffusionModel

    schedule, shape, mean, std = kd_schedules.linear(), (8, 8, 1), 0.0, 0.2
    network = kd_toy.GaussianNetwork(shape, schedule, mean, std)
    model = DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    return model.bits_per_dim(kd_toy.gaussian_images(64, shape, mean, std), clip=False)


_ESTIMATORS = {
    "trajectory": ("a whole trajectory: T network calls", _ORANGE, "s"),
    "pair": ("one pair $x_{t-1}, x_t$: 1 network call", _RED, "^"),
    "one_sample": ("one $x_t$, KL in closed form: 1 network call", _BLUE, "o"),
}


def estimators(path: str | os.PathLike, lengths: tuple[int, ...] = (10, 30, 100, 300), images: int = 2000) -> None:
    """How noisy estimates of the bound are against T, as a PNG: one estimate, and its gradient per network call.

    Args:
        path: where the PNG goes.
        lengths: values of T.
        images: as in `toy.estimator_variances`.
    """
    from kddpm import toy as kd_toy

    measured = [kd_toy.estimator_variances(length, images) for length in lengths]
    figure, (left, right) = _subplots(10, 4.1, columns=2)
    for name, (label, colour, marker) in _ESTIMATORS.items():
        values, gradients = np.array([row[name] for row in measured]).T
        calls = np.array(lengths) if name == "trajectory" else np.ones(len(lengths))
        style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.8}
        left.plot(lengths, values, label=label, **style)
        right.plot(lengths, calls * gradients, **style)
    unit = "(nats per dimension)²"
    left.set(title="Value: one estimate", ylabel=f"variance, {unit}")
    right.set(title="Gradient: for the same number of network calls", ylabel=f"variance times calls, {unit}")
    for axes in (left, right):
        axes.set(xlabel="T", xscale="log", yscale="log", xticks=lengths, xticklabels=lengths)
        axes.xaxis.minorticks_off()
        axes.margins(y=0.12)
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


def _subplots(width, height, columns=1, rows=1, dpi=_DPI):
    """A figure of that many inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gc.collect()  # earlier figures: each is a net of circles, a megabyte that Python finds late
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    axes = figure.subplots(rows, columns)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(rows > 1)
        each.title.set_color(_INK)
    return figure, axes


def _readable(value: float) -> str:
    """Two digits, and a power of ten where it is needed."""
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return rf"${mantissa}\cdot10^{{{int(exponent)}}}$" if exponent else mantissa


def _save(figure, path):
    with replacing(path) as beside:
        figure.savefig(beside, format="png")


def _pixels(figure) -> np.ndarray:
    """What a figure looks like, uint8 (H, W, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _few_colours(shots: list[np.ndarray], hues) -> list[np.ndarray]:
    """The same frames in shades of grey and of these hues alone, which a GIF stores in a third of the room."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    shades = [share * np.array(to_rgb(hue)) + 1 - share for hue in hues for share in np.linspace(0.2, 1, 6)]
    greys = [np.full(3, grey) for grey in np.linspace(0, 1, 16)]
    colours = np.round(255 * np.array([*greys, *shades])).astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes() + bytes(colours[-1]) * (256 - len(colours)))
    none = Image.Dither.NONE
    return [np.asarray(Image.fromarray(s).quantize(palette=palette, dither=none).convert("RGB")) for s in shots]


FIGURES = {
    "schedules": ("schedules.png", schedules),
    "forward": ("forward.png", forward),
    "toy_points": ("toy_points.gif", lambda path: toy("points", path)),
    "toy_moons": ("toy_moons.gif", lambda path: toy("moons", path)),
    "bits_by_term": ("bits_by_term.png", lambda path: bits_by_term(gaussian_bits(), path)),
    "estimators": ("estimators.png", estimators),
}


def main() -> None:
    """Flags to figures."""
    from absl import flags

    from kddpm import commands

    only, out = flags.FLAGS.only, pathlib.Path(flags.FLAGS.out)
    names = list(FIGURES) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in FIGURES:
            raise InputError(f"--only must be among {', '.join(FIGURES)}. Received: {name!r}")
    check_output("--out", out, is_folder=True)
    commands.start_tensorflow()
    for number, name in enumerate(names, 1):
        file, draw = FIGURES[name]
        print(f"{number}/{len(names)} {name} ...", flush=True)
        draw(out / file)
        print(f"    {out / file}, {(out / file).stat().st_size / 1000:.0f} kB", flush=True)


def _define_flags():
    """Only when this file is the program, so that `train.py`, which draws its loss with it, does not have them."""
    from absl import flags

    flags.DEFINE_string("out", "docs/figures", "folder for the figures; those there of the same names are replaced")
    flags.DEFINE_string("only", None, f"some of {', '.join(FIGURES)}, with commas between; all if not given")


if __name__ == "__main__":
    from kddpm import commands

    _define_flags()
    commands.run(main)
