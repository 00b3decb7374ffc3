"""Two averages of the weights beside the one that generates, and snapshots of them, from which others are rebuilt.

    snapshots/step_0000250.npz     both averages at that step, how many weights they had taken in, and the step of the
                                   snapshot before

`kddpm.theory.power_averages` has the equations. The averages take in the weights of every eighth step, which costs an
eighth of taking in all of them; time is counted in weights taken in.
"""

import contextlib
import hashlib
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import archives, arguments
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import replacing
from kddpm.data import npz_files
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import checkpoints
from kddpm.runs.directory import RunDirectory, writing
from kddpm.theory import power_averages

EVERY = 8  # steps
LENGTHS = (0.05, 0.1)  # sigma_rel of the two, as in Karras et al. 2024
_EXPONENTS = [power_averages.exponent_of(length) for length in LENGTHS]
_MOST_ERROR = 0.1  # of a profile, over its norm; a length that is 15 % too long has as much
_SHORTEST = 1e-3  # of the lengths that are looked at
_EXPECTED = "needs every snapshot of the run"
_NAME = re.compile(r"step_(\d{7,})\.npz")


class Averages:
    """Two power-function averages of the weights that are trained, flat.

    Args:
        network: the network that is trained.
    """

    def __init__(self, network: keras.Model):
        self._weights = [weight for weight in network.weights if weight.trainable]
        size = sum(math.prod(weight.shape) for weight in self._weights)
        self.means = [_variable((size,), "float32") for _ in LENGTHS]
        self.count = _variable((), "int64")  # weights taken in
        self._move = tf.function(self._moved, autograph=False)

    @property
    def variables(self) -> list[keras.Variable]:
        """What a checkpoint holds of them."""
        return [*self.means, self.count]

    def update(self) -> None:
        """Take in the weights as they are now."""
        count = int(self.count.numpy()) + 1
        shares = [1 - power_averages.momentum(exponent, count) for exponent in _EXPONENTS]
        self._move(tf.constant(shares, tf.float32))
        self.count.assign(count)

    def _moved(self, shares):
        weights = tf.concat([tf.reshape(weight.value, [-1]) for weight in self._weights], 0)
        for index, mean in enumerate(self.means):
            mean.assign(mean.value + shares[index] * (weights - mean.value))


def _variable(shape, dtype):
    return keras.Variable("zeros", shape=shape, dtype=dtype, trainable=False, name="power_average")


def bytes_of(averages: Averages) -> int:
    """Return the size of a snapshot."""
    return sum(4 * math.prod(mean.shape) for mean in averages.means)


def save(run: RunDirectory, averages: Averages, step: int) -> None:
    """Write a snapshot, unless nothing has been averaged yet.

    Raises:
        InputError: it cannot be written.
    """
    count = int(averages.count.numpy())
    if not run.writes or not count:
        return
    before = [earlier for earlier in saved_steps(run) if earlier < step]
    arrays: dict[str, Any] = {"count": np.int64(count), "previous": np.int64(max(before, default=0))}
    arrays |= {str(length): mean.numpy() for length, mean in zip(LENGTHS, averages.means, strict=True)}
    path = _path(run, step)
    with writing(path), replacing(path) as temporary:
        np.savez(temporary, **arrays)


def forget_after(run: RunDirectory, step: int) -> None:
    """Delete the snapshots after `step`, whose steps will be taken again."""
    for later in saved_steps(run) if run.writes else []:
        if later > step:
            _path(run, later).unlink()


def saved_steps(run: RunDirectory) -> list[int]:
    """Return the steps of the snapshots of a run that are there, in increasing order."""
    found = (_NAME.fullmatch(path.name) for path in run.snapshots_path.glob("step_*.npz"))
    return sorted(int(name[1]) for name in found if name)


def check_lengths(run: RunDirectory, lengths: Sequence[float], argument: str) -> int:
    """Check that averages of these lengths can be rebuilt; return the step of the last snapshot.

    Args:
        run: the run directory.
        lengths: sigma_rel of each.
        argument: the name of what holds them, for errors.

    Raises:
        InputError: as in `rebuilt`, but for the averages in the files.
    """
    steps, _ = _factors(run, lengths, argument, None)
    return steps[-1]


def rebuilt(
    run: RunDirectory,
    model: DiffusionModel,
    length: float,
    argument: str = "ema_length",
    last: int | None = None,
) -> tuple[str, list[np.ndarray]]:
    """Return a digest of the average of a length at a snapshot, and its weights as `model.ema_network` has them.

    Args:
        run: the run directory.
        model: the model of the run, with its averaged weights, of which those that are not trained are kept.
        length: sigma_rel, the standard deviation of the profile over the length of training so far.
        argument: the name of what holds it, for errors.
        last: the step of the snapshot; None = the last one that is there.

    Raises:
        InputError: the run has no snapshots, or not all of them, or a damaged one, or those of another network; or they
            give no average of this length.
    """
    pairs = list(zip(model.network.weights, model.ema_network.weights, strict=True))
    sizes = [math.prod(weight.shape) for weight, _ in pairs if weight.trainable]
    total = np.zeros(sum(sizes))
    steps, factors = _factors(run, [length], argument, last)
    for step, row in zip(steps, factors.reshape(len(steps), len(LENGTHS)), strict=True):
        with _reading(run, step, argument) as archive:
            for name, factor in zip(LENGTHS, row, strict=True):
                total += factor * npz_files.read_array(archive, str(name), total.shape, np.float32)
    flat = total.astype(np.float32)
    parts = iter(np.split(flat, np.cumsum(sizes)[:-1]))
    weights = [next(parts).reshape(own.shape) if weight.trainable else own.numpy() for weight, own in pairs]
    return hashlib.sha256(flat.tobytes()).hexdigest(), weights


def _factors(
    run: RunDirectory, lengths: Sequence[float], argument: str, last: int | None
) -> tuple[list[int], np.ndarray]:
    """Return the steps of the snapshots, and the factors of their averages in those wanted, (2 snapshots, lengths)."""
    steps, counts = _counts(run, argument, last)
    shortest, longest = possible_lengths(counts)
    for length in lengths:
        if not shortest <= arguments.number(argument, length) <= longest:
            raise InputError(
                argument,
                f"must lie in {shortest} .. {longest}, what the {len(steps)} snapshots of {run.path} can give; a "
                "smaller {snapshot_every} of train.py makes more of them",
                length,
                snapshot_every=...,
            )
    factors, errors = _combined(counts, lengths)
    for length, error in zip(lengths, errors, strict=True):
        if error > _MOST_ERROR:  # between lengths that are given: the snapshots are at uneven distances
            expected = f"must be a length that the snapshots of {run.path} give to {_MOST_ERROR:.0%} of its profile"
            raise InputError(argument, expected, f"{length}, to {error:.0%}")
    return steps, factors


def possible_lengths(counts: Sequence[int]) -> tuple[float, float]:
    """Return the shortest and the longest length that snapshots give, with three digits after the point.

    Args:
        counts: how many weights the averages of each snapshot have taken in.
    """
    grid = np.geomspace(_SHORTEST, power_averages.LONGEST, 500)
    possible = grid[_combined(counts, grid)[1] <= _MOST_ERROR]
    return math.ceil(1000 * possible[0]) / 1000, math.floor(1000 * possible[-1]) / 1000


def _combined(counts, lengths):
    """Return factors and errors of `power_averages.combination` for lengths at the last snapshot."""
    ends, exponents = np.repeat(counts, len(LENGTHS)), np.tile(_EXPONENTS, len(counts))
    wanted = [power_averages.exponent_of(length) for length in lengths]
    return power_averages.combination(exponents, ends, wanted, counts[-1])


def _counts(run: RunDirectory, argument: str, last: int | None) -> tuple[list[int], list[int]]:
    """Return the steps of the snapshots, and how many weights the averages had taken in at each.

    Args:
        run: the run directory.
        argument: the name of what asks, for errors.
        last: those after this step are passed over; None = none is.

    Raises:
        InputError: there are none, one is missing, or one is damaged.
    """
    steps = [step for step in saved_steps(run) if last is None or step <= last]
    if not steps:
        expected = "needs snapshots of the run, which train.py makes with {snapshot_every}"
        raise InputError(argument, expected, f"{run.path}, with none", snapshot_every=...)
    counts: list[int] = []
    before = 0
    for step in steps:
        with _reading(run, step, argument) as archive:
            count, previous = (int(npz_files.read_array(archive, name, (), np.int64)) for name in ("count", "previous"))
            if count < max([1, *counts]):
                raise ValueError(f"it says that {count} weights are in its averages")
        if previous != before:
            is_gone = previous not in (0, *steps)
            received = f"{_path(run, step)}, which does not follow the one before it"
            raise InputError(argument, _EXPECTED, f"no {_path(run, previous)}" if is_gone else received)
        counts.append(count)
        before = step
    end = run.read()[0].steps
    if last is None and checkpoints.saved_steps(run)[-1:] == [end] and before < end:
        raise InputError(argument, _EXPECTED, f"no {_path(run, end)}")
    return steps, counts


@contextlib.contextmanager
def _reading(run: RunDirectory, step: int, argument: str) -> Iterator[zipfile.ZipFile]:
    """Open a snapshot.

    Raises:
        InputError: it, or what the block reads of it, is damaged or of another network.
    """
    path = _path(run, step)
    try:
        with archives.opened(path) as archive:
            yield archive
    except npz_files.ERRORS as error:
        raise InputError(argument, _EXPECTED, f"{path}: {first_line(error)}") from None


def _path(run, step):
    return run.snapshots_path / f"step_{step:07d}.npz"
