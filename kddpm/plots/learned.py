"""The figure of a learned noise schedule: its shape, and the loss that is the same at every t."""

import os
from typing import Any

import numpy as np

from kddpm.plots import style

_STD, _ENDS = 0.25, (-8.0, 4.0)
_POINTS, _OF_A_MEAN = 1001, 10  # of the curves, and of each mean of a loss


def learned_schedule(path: str | os.PathLike, steps: int = 1000) -> None:
    """Plot a schedule learned for Gaussian pixels beside a straight line and the best one, and their losses, as a PNG.

    Args:
        path: path of the PNG.
        steps: training steps of the schedule.
    """
    from kddpm import toy as kd_toy
    from kddpm.theory import learned

    images = np.random.default_rng(0).normal(0, _STD, (4000, 64))
    schedule = learned.schedule(
        lambda z, log_snr: kd_toy.gaussian_x0(z, log_snr, 0.0, _STD), images, _POINTS, ends=_ENDS, train_ends=False,
        steps=steps,
    )  # fmt: skip
    t = np.linspace(0, 1, _POINTS)
    start, end = np.log1p(_STD**2 * np.exp(-np.array(_ENDS)))
    best = np.log(_STD**2 / np.expm1(start + t * (end - start)))  # dt in proportion to E[e | gamma]
    curves = (
        ("a straight line", np.linspace(*_ENDS, _POINTS), style.ORANGE, "-"),
        ("learned", 2 * schedule.log_sigmas, style.BLUE, "-"),
        ("best, in closed form", best, style.INK, (0, (4, 3))),
    )
    figure, (left, right) = style.subplots(10, 4.1, columns=2)
    for name, gamma, colour, dashes in curves:
        look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.8}
        left.plot(t, -gamma, label=name, **look)
        # E[e | gamma] = std^2 / (std^2 + exp(gamma)), whose integral is -log(1 + std^2 exp(-gamma))
        loss = -np.diff(np.log1p(_STD**2 * np.exp(-gamma[::_OF_A_MEAN]))) * (_POINTS - 1) / _OF_A_MEAN / 2
        right.plot(t[:-1:_OF_A_MEAN] + t[_OF_A_MEAN] / 2, loss, **look)
    left.set(title="The schedule", ylabel=r"$-\gamma(t)$, log-SNR in nats")
    right.set(title="The mean loss along t", ylabel="nats per dimension", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="t, from data to noise", xlim=(0, 1))
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    style.save(figure, path)
