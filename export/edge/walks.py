"""The walk over steps by the signatures denoise and noise, equation (2) of kddpm/sampling/step_table.py."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np


def walked(
    x: np.ndarray,
    rows: list[dict],
    clip: bool | str,
    denoise: Callable,
    noise: Callable,
    advance: Callable,
    edit: Callable = lambda x, row: x,
) -> np.ndarray:
    """Return x after these rows.

    Args:
        x: float (B, H, W, C).
        rows: as in `steps`.
        clip: what is done to x_0: True = cut at [-1, 1], "dynamic" = see `_clipped`, False = nothing.
        denoise: the signature, with the label where there are classes.
        noise: from the index of a row to its noise.
        advance: called after each row.
        edit: from x after a row, and the row's index, to what x is then.
    """
    memory = x
    for index, row in enumerate(rows):
        found = denoise(x=x.astype(np.float32), t=np.full(len(x), row["t"], np.int32))
        x_0, std = _clipped(found["x0"], clip), row["noise_std"]
        if "log_variance_low" in row:
            low, high = row["log_variance_low"], row["log_variance_high"]
            std = std * np.exp(0.5 * (low + (found["fraction"] + 1) / 2 * (high - low)))
        after = row["from_x0"] * x_0 + row["from_xt"] * x
        if np.any(std):
            after = after + std * noise(index)
        if "from_memory" in row:
            after = after + row["from_memory"] * memory
            memory = row["memory_from_x0"] * x_0 + row["memory_from_xt"] * x + row["memory_from_memory"] * memory
        x = edit(after, index)
        advance()
    return x


def image(x: np.ndarray) -> np.ndarray:
    """Return x in [-1, 1] as grey levels, 0 .. 255."""
    return np.clip(np.round((x + 1) * 127.5), 0, 255)


def _clipped(x_0, clip):
    """Return x_0 clipped to [-1, 1]; or to its own 99.5 % quantile and divided by it; or as it is."""
    if clip == "dynamic":
        sizes = np.sort(np.abs(x_0).reshape(len(x_0), -1), axis=1)
        limit = np.maximum(sizes[:, math.ceil(0.995 * (sizes.shape[1] - 1))], 1).reshape(-1, 1, 1, 1)
        return np.clip(x_0, -limit, limit) / limit
    return np.clip(x_0, -1, 1) if clip else x_0
