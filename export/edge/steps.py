"""The steps from noise to a picture: those of the file, others of its sampler, and RePaint's order of them.

A step is a row of coefficients, a dict with the names of NAME.json, with its place in the schedule (`index`) and the
alpha_bar there.
"""

from __future__ import annotations

import math

import numpy as np

from .description import InputError

MOST_RESAMPLINGS = 1000


def of_file(about: dict) -> list[dict]:
    """Return the rows that NAME.json lists, from noise to a picture."""
    columns = {name: column for name, column in about["steps"].items() if isinstance(column, list)}
    return _placed([dict(zip(columns, row)) for row in zip(*columns.values())], about["schedule"])


def respaced(about: dict, num_steps: int) -> list[dict]:
    """Return rows of the file's sampler, ancestral or ddim, in so many steps, evenly spaced and counted from the end.

    Raises:
        InputError: more steps than the schedule has, or a variance that cannot be computed here.
    """
    schedule, sampler = about["schedule"], about["sampler"]
    alpha_bars = np.array(schedule["alpha_bars"])
    if not 1 <= num_steps <= len(alpha_bars):
        raise InputError(f"--num_steps must lie in 1 .. {len(alpha_bars)}. Received: {num_steps}")
    is_ddim = sampler["name"] == "ddim"
    variance = "small" if is_ddim else sampler.get("variance", "small")
    if variance not in ("small", "large"):
        raise InputError(f"--num_steps needs a file with variance small or large. Received: {variance!s:.40}")
    kept = np.round(np.arange(1, num_steps + 1) * (len(alpha_bars) / num_steps)).astype(int) - 1
    names = _timesteps(schedule)
    rows, before = [], 1.0
    for index in kept:
        now = alpha_bars[index]
        beta = 1 - now / before
        posterior = beta * (1 - before) / (1 - now)
        eta = sampler["eta"] if is_ddim else 1.0  # the mean of an ancestral step is that of DDIM's with as much noise
        from_xt = math.sqrt(max(1 - before - eta**2 * posterior, 0) / (1 - now))
        std = eta * math.sqrt(posterior) if variance == "small" else math.sqrt(beta)
        rows.append(
            {
                "t": names[index],
                "from_x0": math.sqrt(before) - from_xt * math.sqrt(now),
                "from_xt": from_xt,
                "noise_std": std if rows else 0.0,
            }
        )
        before = now
    return _placed(rows[::-1], schedule)


def varied(rows: list[dict], strength: float, num_timesteps: int) -> list[dict]:
    """Return the last rows, from the level of noise that is nearest to a strength in [0, 1] on."""
    levels = np.array([0, *(row["index"] + 1 for row in reversed(rows))])
    return rows[len(rows) - int(np.argmin(np.abs(levels - strength * num_timesteps))) :]


def resampled(num_steps: int, jump_length: int, resamplings: int) -> tuple[list[int], list[int]]:
    """Return RePaint's order of steps: the step to take at each row, and how many noising steps follow it.

    Args:
        num_steps: number of rows.
        jump_length: steps to go back.
        resamplings: how often each stretch of steps is taken.
    """
    left = dict.fromkeys(range(1, num_steps - jump_length + 1, jump_length), resamplings - 1)
    order, climbs, level = [], [], num_steps
    while level > 0:
        order.append(num_steps - level)
        level -= 1
        again = left.get(level, 0) > 0
        if again:
            left[level] -= 1
        climbs.append(jump_length if again else 0)
        level += climbs[-1]
    return order, climbs


def _timesteps(schedule):
    """Return t of each place in the schedule."""
    return schedule.get("timesteps") or range(len(schedule["alpha_bars"]))


def _placed(rows, schedule):
    index_of = {t: index for index, t in enumerate(_timesteps(schedule))}
    places = [index_of[row["t"]] for row in rows]
    return [{**row, "index": place, "alpha_bar": schedule["alpha_bars"][place]} for row, place in zip(rows, places)]
