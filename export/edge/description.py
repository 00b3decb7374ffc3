"""NAME.json, the description beside an exported file: read, and checked before anything is painted by it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import re

DESCRIPTION_VERSION = 3  # of NAME.json; its fields have other meanings in other versions
_LARGEST = 1e30  # of a coefficient: what float32 holds, with room for products
_COLUMNS = ("from_x0", "from_xt", "noise_std")
_OF_MEMORY = ("from_memory", "memory_from_x0", "memory_from_xt", "memory_from_memory")
_OF_LEARNED_VARIANCE = ("log_variance_low", "log_variance_high")


class InputError(ValueError):
    """An input cannot be used; the message says why in one line."""


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Return a path with the home folder in place of ~, which shells leave in --out=~/grid.png."""
    return pathlib.Path(os.path.expanduser(path))


def read(path: pathlib.Path) -> dict:
    """Return the description of an exported file, once it is known to be that file's.

    Raises:
        InputError: the file or its description is missing, or the description is of another version, of something
            else or of another file.
    """
    _check_is_there(path)
    side = path.with_suffix(".json")
    _check_is_there(side)
    try:
        about = json.loads(side.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        about = None
    if isinstance(about, dict) and about.get("description_version") != DESCRIPTION_VERSION:
        is_older = "description_version" not in about
        version = "none, as in older exports" if is_older else json.dumps(about["description_version"])[:40]
        raise InputError(
            f"{side} must have description_version {DESCRIPTION_VERSION}, the one that is read here. "
            f"Received: {version}"
        )
    fault = "no object of JSON" if not isinstance(about, dict) else _fault(about)
    if fault is not None:
        raise InputError(
            f"{side} must be the description that the export wrote beside the file. Received: something else ({fault})"
        )
    if _sha256(path) != about["sha256"]:
        raise InputError(
            f"{path} must be the file that {side.name} describes: {about['bytes']} bytes of another sha256. "
            f"Received: {path.stat().st_size} bytes, truncated, altered or of another export"
        )
    return about


def _check_is_there(path):
    if not path.is_file():
        raise InputError(f"{path} is missing: an export is NAME.tflite with NAME.json beside it")


def _sha256(path):
    found = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def _refuse(constant):
    raise ValueError(f"{constant} is no number of JSON")


def _fault(about: dict) -> str | None:
    """Return the entry that is not what an export writes, None = all are."""
    checks = {
        "network_calls": lambda of: _is_count(of),
        "state_channels": lambda of: _is_count(of),
        "batch_size": lambda of: _is_count(of),
        "bytes": lambda of: _is_count(of),
        "num_classes": lambda of: of is None or _is_count(of),
        "image_shape": lambda of: len(of) == 3 and all(map(_is_count, of)),
        "signatures": lambda of: isinstance(of, dict),
        "file": lambda of: isinstance(of, str),
        "precision": lambda of: isinstance(of, str),
        "sha256": lambda of: isinstance(of, str),
        "min_runtime_version": lambda of: re.fullmatch(r"[0-9]{1,3}[.][0-9]{1,3}[.][0-9]{1,3}", of) is not None,
        "schedule": _is_schedule,
        "steps": lambda of: _are_steps(of, about["schedule"], about["network_calls"]),
        "sampler": lambda of: _is_sampler(of),
    }
    for name, is_right in checks.items():
        try:
            if not is_right(about[name]):
                return name
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
            return name
    return None


def _is_count(value) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _are_numbers(values, least=-_LARGEST, most=_LARGEST) -> bool:
    return isinstance(values, list) and all(type(of) in (int, float) and least <= of <= most for of in values)


def _is_schedule(schedule) -> bool:
    alpha_bars, timesteps = schedule["alpha_bars"], schedule.get("timesteps")
    falls = all(later < earlier for earlier, later in zip([1.0, *alpha_bars], alpha_bars))
    if timesteps is None:
        return bool(alpha_bars) and _are_numbers(alpha_bars, 0) and falls
    rises = all(earlier < later for earlier, later in zip([-1, *timesteps], timesteps))
    are_whole = all(type(t) is int and t < 2**31 for t in timesteps)
    return are_whole and rises and falls and len(timesteps) == len(alpha_bars) > 0 and _are_numbers(alpha_bars, 0)


def _are_steps(steps, schedule, calls) -> bool:
    names = set(schedule.get("timesteps") or range(len(schedule["alpha_bars"])))
    needed = [*_COLUMNS]
    for group in (_OF_MEMORY, _OF_LEARNED_VARIANCE):
        if any(steps.get(name) is not None for name in group):
            needed += group
    fits = all(_are_numbers(steps[name]) and len(steps[name]) == calls for name in needed)
    return fits and len(steps["t"]) == calls and all(type(t) is int and t in names for t in steps["t"])


def _is_sampler(sampler) -> bool:
    is_named = isinstance(sampler["name"], str) and _is_count(sampler["num_steps"])
    eta = sampler.get("eta", 0)
    if sampler["name"] == "ddim" and "eta" not in sampler:
        return False
    has_eta = type(eta) in (int, float) and math.isfinite(eta) and 0 <= eta <= 1
    return is_named and has_eta and (sampler["clip"] in (True, False) or sampler["clip"] == "dynamic")
