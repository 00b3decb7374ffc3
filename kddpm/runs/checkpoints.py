"""Checkpoints of a run.

    step_0005000.npz     every variable of training, by index: weights, averages, optimizer, step, running means
    step_0005000.json    its sha256, the loss, and what its bits depend on; its presence makes the checkpoint complete

Both are written to temporary files and renamed, the .json last. A checkpoint that does not match its digest is skipped
with a warning, and the previous one is used.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kddpm.base import archives
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import read_json, replacing, sha256
from kddpm.data import npz_files
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import fingerprint, weights_files
from kddpm.runs.directory import RunDirectory

_CHECKPOINTS_KEPT = 3
_NAME = re.compile(r"step_(\d{7,})\.(npz|json)")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint's .json file.

    Attributes:
        step: training steps taken.
        loss: running mean since the last row of metrics.csv.
        sha256: digest of the .npz.
        variables: [shape, dtype] of each variable, in order.
        fingerprint: `fingerprint.of_this_process` of the process that wrote it.
    """

    step: int
    loss: float
    sha256: str
    variables: list[list]
    fingerprint: dict


class Checkpoints:
    """Saves and restores all that training needs to resume: both sets of weights, optimizer, step, running means.

    Args:
        run: the run directory.
        model: a compiled `DiffusionModel`.
        circumstances: `fingerprint.of_this_process` of this process.
        warn: called with each line that the user should read.
        others: variables beside the model's that training needs too.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: DiffusionModel,
        circumstances: dict,
        warn: Callable[[str], None],
        others: Sequence[keras.Variable] = (),
    ):
        self._run = run
        self._model = model
        self._circumstances = circumstances
        self._warn = warn
        means = [variable for metric in model.metrics for variable in metric.variables]
        self._variables = [*model.variables, *means, *model.optimizer.variables, *others]

    def restore(self) -> int:
        """Load the newest readable checkpoint into the model; return its step, 0 if there is no checkpoint.

        Raises:
            InputError: no checkpoint can be read although there are some, or one belongs to another model.
        """
        steps = self._steps()
        damaged = []
        for step in reversed(steps):
            try:
                about = self._about(step)
                arrays = self._read(about) if about.variables == self._described() else None
            except (*npz_files.ERRORS, TypeError) as error:
                damaged.append(f"that of step {step} is damaged: {first_line(error)}")
                continue
            if arrays is None:
                raise InputError(f"The checkpoint of step {step} in {self._run.path} belongs to another model")
            for line in damaged:
                self._warn(f"Of the checkpoints in {self._run.checkpoints_path}, {line}")
            if changed := fingerprint.differences(about.fingerprint, self._circumstances):
                self._warn(f"From step {step} on, bits may differ from a run in one go: {'; '.join(changed)}")
            for variable, array in zip(self._variables, arrays, strict=True):
                variable.assign(array)
            return step
        if not steps:
            self._check_new()
        if damaged:
            raise InputError(f"No checkpoint in {self._run.checkpoints_path} can be read: {'; '.join(damaged)}")
        return 0

    def save(self, step: int, loss: float) -> None:
        """Write a checkpoint and the averaged weights, and delete the checkpoints that are not kept.

        Raises:
            InputError: the checkpoint cannot be written, for example on a full disk; earlier ones are intact.
        """
        # Reading some of the variables needs all workers.
        arrays: dict[str, Any] = {_member(i): np.asarray(v) for i, v in enumerate(self._variables)}
        if not self._run.writes:
            return
        path = self._path(step, "npz")
        try:
            with replacing(path) as temporary:
                np.savez(temporary, **arrays)
                digest = sha256(temporary)
            weights_files.save(self._model.ema_network, self._run.weights_path)
            about = Checkpoint(step, loss, digest, self._described(), self._circumstances)
            with replacing(self._path(step, "json")) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(about), indent=1) + "\n")
            self._drop_others(step)
        except (OSError, RuntimeError) as error:  # RuntimeError: from h5py, on a full disk
            text = f"The checkpoint of step {step} cannot be written, earlier ones are whole: {first_line(error)}"
            raise InputError(text) from None

    def _described(self) -> list[list]:
        return [[list(v.shape), str(np.dtype(v.dtype))] for v in self._variables]

    def _path(self, step, suffix):
        return self._run.checkpoints_path / f"step_{step:07d}.{suffix}"

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints, damaged ones included, in increasing order."""
        folder = self._run.checkpoints_path
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in names if not _NAME.fullmatch(name) and not name.startswith(".")]
        if foreign:
            raise InputError(f"{folder} must hold checkpoints of this version alone. Received: {foreign[0]}")
        return sorted(int(name[1]) for name in map(_NAME.fullmatch, names) if name and name[2] == "json")

    def _check_new(self):
        """Check that there never was a complete checkpoint: a kill in the first save leaves at most arrays and weights.

        Raises:
            InputError: there may have been one.
        """
        folder, weights = self._run.checkpoints_path, self._run.weights_path
        arrays = len(list(folder.glob("step_*.npz")))
        if arrays > 1 or (weights.exists() and not arrays) or (folder.exists() and not folder.is_dir()):
            raise InputError(
                f"{folder} must hold the checkpoints of this run, and holds none that is whole. Bring them back, or "
                "begin anew in another {run_dir}",
                run_dir=...,
            )

    def _about(self, step) -> Checkpoint:
        about = _read_about(self._path(step, "json"), step)
        if not isinstance(about.loss, float) or not isinstance(about.fingerprint, dict):
            raise ValueError("its loss is no number, or its fingerprint no list of names")
        return about

    def _read(self, about) -> list[np.ndarray]:
        path = self._path(about.step, "npz")
        if sha256(path) != about.sha256:
            raise ValueError("its sha256 is not that of its description")
        with archives.opened(path) as archive:
            return [npz_files.read_array(archive, _member(i), v.shape, v.dtype) for i, v in enumerate(self._variables)]

    def _drop_others(self, newest):
        """Delete all checkpoints except the last few and the one with the smallest loss."""
        steps = [step for step in self._steps() if step <= newest]
        losses = {}
        for step in steps:
            try:
                losses[step] = self._about(step).loss
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged, so not kept for its loss
        kept = {*steps[-_CHECKPOINTS_KEPT:], *(step for step in losses if losses[step] == min(losses.values()))}
        for path in sorted(self._run.checkpoints_path.glob("step_*")):  # .json first: without it there is no checkpoint
            name = _NAME.fullmatch(path.name)
            if name and int(name[1]) not in kept:
                path.unlink()


def saved_steps(run: RunDirectory) -> list[int]:
    """Return the steps of the checkpoints of a run that are there, in increasing order."""
    found = (_NAME.fullmatch(path.name) for path in run.checkpoints_path.glob("step_*.json"))
    whole = (name for name in found if name and (run.checkpoints_path / f"step_{name[1]}.npz").exists())
    return sorted(int(name[1]) for name in whole)


def averaged_weights(run: RunDirectory, model: DiffusionModel, step: int) -> tuple[str, list[np.ndarray]]:
    """Return the digest of a checkpoint and the averaged weights in it, as `weights_of`."""
    return weights_of(run, model, step, model.ema_network.weights)


def _read_about(path: pathlib.Path, step: int) -> Checkpoint:
    """Return the description of the checkpoint of a step."""
    about = Checkpoint(**read_json(path))
    if about.step != step:
        raise ValueError(f"it says that it is of step {about.step}")
    return about


def weights_of(
    run: RunDirectory, model: DiffusionModel, step: int, weights: Sequence[keras.Variable]
) -> tuple[str, list[np.ndarray]]:
    """Return the digest of a checkpoint and the values that it has of some weights, in their order.

    Args:
        run: the run directory.
        model: a model of its configuration; it is not changed, and needs no optimizer.
        step: one of `saved_steps`.
        weights: of `model.network`, which are trained, or of `model.ema_network`, their averages.

    Raises:
        InputError: no such checkpoint, or one that is damaged or of another model.
    """
    if step not in (steps := saved_steps(run)):
        there = ", ".join(map(str, steps)) or "none"
        raise InputError("checkpoints", f"must be among those of the run, {there}", step)
    path = run.checkpoints_path / f"step_{step:07d}.npz"
    places = {id(variable): i for i, variable in enumerate(model.variables)}
    try:
        about = _read_about(path.with_suffix(".json"), step)
        if sha256(path) != about.sha256:
            raise ValueError("its sha256 is not that of its description")
        with archives.opened(path) as archive:
            return about.sha256, [
                npz_files.read_array(archive, _member(places[id(weight)]), tuple(weight.shape), str(weight.dtype))
                for weight in weights
            ]
    except (*npz_files.ERRORS, TypeError) as error:
        raise InputError(f"The checkpoint of step {step} in {run.path} cannot be read: {first_line(error)}") from None


def _member(index: int) -> str:
    return f"{index:05d}"
