"""Figures of processes: the way back over one step, continuous time, and Langevin dynamics."""

import os

import numpy as np

from kddpm.plots import style


def reverse_conditional(
    path: str | os.PathLike, betas: tuple[float, ...] = (0.9, 0.5, 0.1), x_t: float = 0.5, alpha_bar_prev: float = 0.5
) -> None:
    """Plot q(x_{t-1} | x_t) of data at 1 and -1 and the normal of its moments, and their divergence, as a PNG.

    Args:
        path: path of the PNG.
        betas: of the step, one a panel.
        x_t: the noisy point of the densities.
        alpha_bar_prev: alpha_bar before the step.
    """
    from kddpm import toy

    figure, (*panels, gap) = style.subplots(10, 3.1, columns=len(betas) + 1)
    for axes, beta in zip(panels, betas, strict=True):
        true = toy.reverse_conditional(x_t, beta, alpha_bar_prev)
        mean = true.weights @ true.means[:, 0]
        std = np.sqrt(true.weights @ ((true.means[:, 0] - mean) ** 2 + true.variances))
        x = mean + std * np.linspace(-3.5, 3.5, 400)
        normal = np.exp(-((x - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)
        density = np.exp(true.log_density(x[:, np.newaxis]))
        axes.fill_between(x, density, color=style.SKY, alpha=0.45, linewidth=0, label=r"$q(x_{t-1}\mid x_t)$")
        axes.plot(x, normal, color=style.RED, linewidth=1.6, linestyle=(0, (4, 2)), label="normal, same moments")
        axes.set(title=rf"$\beta$ = {beta:g}", xlabel="$x_{t-1}$", yticks=[], xlim=x[[0, -1]], ylim=(0, None))
    panels[0].set_ylabel("density")
    handles, labels = panels[0].get_legend_handles_labels()
    shown = np.geomspace(1e-3, 0.95, 40)
    gap.plot(shown, [toy.gaussian_gap_nats(beta, alpha_bar_prev) for beta in shown], color=style.BLUE, linewidth=1.8)
    cube = toy.gaussian_gap_nats(shown[0], alpha_bar_prev) * (shown / shown[0]) ** 3
    gap.plot(shown, cube, color=style.INK, linewidth=1, linestyle=":", label=r"as $\beta^3$")
    gap.set(title="expected KL, nats", xlabel=r"$\beta$", xscale="log", yscale="log")
    gap.grid(alpha=0.25)
    gap.legend(frameon=False, loc="upper left")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    style.save(figure, path)


_LINE = ([1, 1], [[-0.7], [0.6]], [0.01, 0.02])  # the mixture of `continuous_time`


def continuous_time(path: str | os.PathLike, count: int = 8, steps: int = 400) -> None:
    """Draw paths of the forward SDE, the reverse SDE and the ODE over the density at every time, as a PNG.

    Data are a mixture of two normals on a line, the process is variance preserving. The reverse SDE and the ODE start
    from the same points. A path has the colour of the normal where it touches the data.

    Args:
        path: path of the PNG.
        count: paths of each kind, even.
        steps: Euler steps.
    """
    from kddpm import toy
    from kddpm.theory import sde

    process, data = sde.linear(0.1, 10.0), toy.Mixture(*_LINE)

    def marginal(t):
        return data.noised(process.signal(t), process.noise(t))

    times, x = np.linspace(0, 1, steps + 1), np.linspace(-2.2, 2.2, 240)
    density = np.stack([np.exp(marginal(t).log_density(x[:, np.newaxis])) for t in times], axis=1)
    density /= density.max(axis=0)
    photos = np.repeat(data.means, count // 2, axis=0)
    noise = np.sort(marginal(1.0).draw(1000 * count)[:, 0])[500::1000, np.newaxis]  # evenly spread over its quantiles
    figure, panels = style.subplots(10, 3.5, columns=3)
    for axes, title, start, way_times, stochasticity in zip(
        panels,
        ("Forward SDE →", "Reverse SDE ←", "Probability-flow ODE ←"),
        (photos, noise, noise),
        (times, times[::-1], times[::-1]),
        (1.0, 1.0, 0.0),
        strict=True,
    ):
        way = sde.paths(process, lambda x, t: marginal(t).score(x), start, way_times, stochasticity, seed=2)[..., 0]
        axes.contourf(times, x, density, levels=np.linspace(0, 1, 11), cmap="Greys", vmax=2.2)
        for line, end in zip(way.T, way[np.argmin(way_times)], strict=True):
            hue = style.BLUE if end < 0 else style.RED
            axes.plot(way_times[::4], line[::4], color=hue, linewidth=1.1)
        axes.set(title=title, xlabel="time: data at 0, noise at 1", ylim=(x[0], x[-1]), xlim=(0, 1))
    panels[0].set_ylabel("x")
    style.save(figure, path)


_PLANE = ([1, 4], [[-2.0, -1.0], [2.0, 1.0]], [0.09, 0.09])  # the mixture of `langevin`


def langevin(path: str | os.PathLike, count: int = 400) -> None:
    """Draw Langevin dynamics on a mixture in the plane, plain and annealed, and the bias of a step, as a PNG.

    A fifth of the mixture is in the component whose points are blue.

    Args:
        path: path of the PNG.
        count: points of each kind; the bias is that of 50 times as many chains.
    """
    from kddpm import toy

    data, rng = toy.Mixture(*_PLANE), np.random.default_rng(0)
    start, sigmas = 5 * rng.normal(size=(count, 2)), np.geomspace(5, 0.05, 30)
    plain, annealed = toy.langevin_paths(data, start, 0.01, 600)[-1], toy.annealed_paths(data, start, sigmas, 20)[-1]
    side = np.linspace(-4, 4, 160)
    density = np.exp(data.log_density(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))).reshape(160, 160)
    figure, (left, middle, right) = style.subplots(10, 3.7, columns=3)
    for axes, title, ends in ((left, "Langevin dynamics", plain), (middle, "Annealed", annealed)):
        axes.contour(side, side, density, levels=density.max() * np.array([0.02, 0.15, 0.6]), colors=style.FAINT)
        low = data.shares(ends)[:, 0] > 0.5
        for part, hue in ((low, style.BLUE), (~low, style.RED)):
            axes.scatter(*ends[part].T, s=5, color=hue, linewidths=0)
        axes.set(title=f"{title}: {100 * low.mean():.0f} % are blue")
        axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    _bias(right, 50 * count)
    style.save(figure, path)


def _bias(axes, chains):
    """The variance at which Langevin steps settle on N(0, 1), against delta."""
    from kddpm import toy

    normal, deltas = toy.Mixture([1], [[0.0]], [1.0]), np.array([0.05, 0.2, 0.4, 0.6, 0.8, 1.0])
    for adjusted, hue, marker, label in ((False, style.ORANGE, "s", "as it is"), (True, style.GREEN, "o", "MALA")):
        settled = [
            np.var(toy.langevin_paths(normal, normal.draw(chains, seed), delta, 60, adjusted, seed + 1)[-1])
            for seed, delta in enumerate(deltas)
        ]
        axes.plot(deltas, settled, marker, color=hue, markersize=6, label=label)
    fine = np.linspace(0, 1, 50)
    axes.plot(fine, 1 / (1 - fine / 2), color=style.ORANGE, linewidth=1, label=r"$1 / (1 - \delta / 2)$")
    axes.axhline(1, color=style.GREEN, linewidth=1)
    axes.set(title="Variance at which N(0, 1) settles", xlabel=r"step size $\delta$", ylim=(0.9, 2.05))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
