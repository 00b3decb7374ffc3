"""An exported .tflite on a device: the walk from seeds to pictures, and pictures from pictures.

It needs NumPy and LiteRT, or tflite-runtime. A file with the signatures start, step and finish is walked by these, else
by denoise and noise and the steps that NAME.json lists, else generate paints. Editing, and steps of another number,
always go by denoise and noise.
"""

from __future__ import annotations

import math
import pathlib
import statistics
import time
from typing import Iterator

import numpy as np

from . import signatures, steps
from .description import InputError, expanded, read
from .flags import count
from .runtime import load
from .walks import image, walked

_JUMP_LENGTH = 10  # Lugmayr et al. 2022, section 5.1


def _fault(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be run by LiteRT: {str(error).splitlines()[0]}")


class _Signature:
    """A signature. Its first call prepares the operators, which ends in a line where they do not fit each other."""

    def __init__(self, path: pathlib.Path, runner):
        self._path, self._runner = path, runner
        self.get_input_details, self.get_output_details = runner.get_input_details, runner.get_output_details

    def __call__(self, **inputs):
        try:
            return self._runner(**inputs)
        except RuntimeError as error:
            raise _fault(self._path, error) from None


class Generator:
    """An exported model.

    Args:
        path: NAME.tflite, with NAME.json in the same folder.
        threads: number of the runtime's threads.
        xnnpack: whether the XNNPACK delegate may run operators.

    Raises:
        InputError: a file that is missing, that is not what its side file describes, or that the installed runtime is
            too old for or cannot load; a side file of another version; no runtime.
    """

    def __init__(self, path: pathlib.Path, threads: int = 2, xnnpack: bool = True):
        self.path = path = expanded(path)
        self.about = read(path)
        try:
            name, runtime = load(path, threads, xnnpack, self.about["min_runtime_version"])
            names = runtime.get_signature_list()
            self._run = {name: _Signature(path, runtime.get_signature_runner(name)) for name in names}
        except InputError as error:
            raise InputError(f"{path} {error}") from None
        except (ValueError, RuntimeError) as error:
            raise _fault(path, error) from None
        self.runtime = f"{name}, {count(threads, 'thread')}, {'with' if xnnpack else 'without'} XNNPACK"
        signatures.check(self._run, self.about, path)
        self._way = signatures.way(self._run, path)

    def generate(self, seeds, labels=None, num_steps=None, progress=lambda done, calls: None) -> Iterator[np.ndarray]:
        """Return pictures of seeds, each as soon as its batch is painted.

        Args:
            seeds: integers, one a picture.
            labels: classes, one a seed or one for all; None = seed modulo classes.
            num_steps: steps, at most T; None = those of the file.
            progress: called with the calls of the network that are done and their number, after each.

        Returns:
            An iterator of as many pictures as seeds, uint8 (H, W, C).

        Raises:
            InputError: labels of another number or out of range, or steps that the file does not allow.
        """
        rows = self._rows(num_steps)

        def called(name, given, **inputs):
            """Call a signature with those inputs that it takes: in a file for GPUs noise instead of a seed."""
            takes = self._run[name].get_input_details()
            if "noise" in takes:
                inputs["noise"] = self._noise(given, 1, int(inputs["index"][0]))
            return self._run[name](**{key: value for key, value in {**given, **inputs}.items() if key in takes})

        def by_generate(given, advance):
            start = {} if "seed" in self._run["generate"].get_input_details() else called("start", given)
            picture = called("generate", given, **start)["image"]
            advance()
            return picture

        def by_step(given, advance):
            x = called("start", given)["x"]
            for index in range(len(rows)):
                x = called("step", given, x=x, index=np.array([index], np.int32))["x"]
                advance()
            return self._run["finish"](x=x)["image"]

        def by_denoise(given, advance):
            return image(self._walked(self._noise(given, 0, 0), rows, given, advance))

        ways = {"step": by_step, "denoise": by_denoise, "generate": by_generate}
        way = self._way if num_steps is None else "denoise"
        return self._paint(ways[way], seeds, labels, 1 if way == "generate" else len(rows), progress)

    def variations(
        self, picture, strength, seeds, labels=None, num_steps=None, progress=lambda done, calls: None
    ) -> Iterator[np.ndarray]:
        """Return pictures like the given one: noise is added up to a level, then taken away.

        Args:
            picture: uint8 (H, W, C).
            strength: 0 = the picture itself, 1 = what the seeds generate without it.
            seeds: as in `generate`.
            labels: one a seed or one for all; needed by a model with classes.
            num_steps: as in `generate`.
            progress: as in `generate`.

        Returns:
            An iterator of as many pictures as seeds, uint8 (H, W, C).
        """
        if not 0 <= strength <= 1:
            raise InputError(f"--strength must lie in [0, 1]. Received: {strength}")
        rows = steps.varied(self._editable_rows(num_steps), strength, self._num_timesteps())
        x_0 = picture.astype(np.float32) / np.float32(127.5) - 1
        labels = self._labels_of_edit(labels)

        def vary(given, advance):
            x = self._noise(given, 0, 0)
            if not rows:
                x = np.broadcast_to(x_0, x.shape)
            elif rows[0]["index"] < self._num_timesteps() - 1:
                alpha_bar = rows[0]["alpha_bar"]
                x = math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * x
            return image(self._walked(x, rows, given, advance))

        return self._paint(vary, seeds, labels, len(rows), progress)

    def inpaint(
        self,
        picture,
        known,
        seeds,
        labels=None,
        num_steps=None,
        jump_length=None,
        resamplings=5,
        progress=lambda done, calls: None,
    ) -> Iterator[np.ndarray]:
        """Return the picture with its unknown pixels painted, by RePaint (Lugmayr et al. 2022, algorithm 1).

        Args:
            picture: uint8 (H, W, C).
            known: bool (H, W), True = keep.
            seeds: as in `generate`.
            labels: one a seed or one for all; needed by a model with classes.
            num_steps: as in `generate`.
            jump_length: steps to go back, so that the new fits the old; None = 10, or all but one if there are fewer.
            resamplings: how often each stretch of steps is taken; 1 = once.
            progress: as in `generate`.

        Returns:
            An iterator of as many pictures as seeds, uint8 (H, W, C).
        """
        rows = self._editable_rows(num_steps)
        if not 1 <= resamplings <= steps.MOST_RESAMPLINGS:
            raise InputError(f"--resamplings must lie in 1 .. {steps.MOST_RESAMPLINGS}. Received: {resamplings}")
        if jump_length is None:
            jump_length = min(_JUMP_LENGTH, max(len(rows) - 1, 1))
        elif jump_length < 1 or (resamplings > 1 and jump_length >= len(rows)):
            raise InputError(
                f"--jump_length must be at least 1, and less than the {count(len(rows), 'step')} "
                f"unless --resamplings=1. Received: {jump_length}"
            )
        labels = self._labels_of_edit(labels)
        order, climbs = steps.resampled(len(rows), jump_length, resamplings)
        reached = np.array([*(row["alpha_bar"] for row in rows), 1.0])  # of the levels, from noise to the picture
        x_0 = picture.astype(np.float32) / np.float32(127.5) - 1

        def repaint(given, advance):
            def edit(x, row):
                """Set the known pixels at the level reached, then go back as far as RePaint does here."""
                level = order[row] + 1
                noised = math.sqrt(reached[level]) * x_0 + math.sqrt(1 - reached[level]) * self._noise(given, 2, row)
                x = np.where(known[..., np.newaxis], noised, x)
                kept = reached[level - climbs[row]] / reached[level]
                return math.sqrt(kept) * x + math.sqrt(1 - kept) * self._noise(given, 3, row)

            x = self._noise(given, 0, 0)
            return image(self._walked(x, [rows[row] for row in order], given, advance, edit=edit))

        return self._paint(repaint, seeds, labels, len(order), progress)

    def noise(self, seeds) -> np.ndarray | None:
        """Return x_T of seeds, float32 (N, H, W, C); None if the file has no signature that gives it."""
        drawn, batch = [], self.about["batch_size"]
        for first in range(0, len(seeds), batch):
            given = {"seed": np.resize(np.array(seeds[first : first + batch], np.int32), batch)}
            if "start" in self._run:
                drawn.append(self._run["start"](**given)["x"][..., : self.about["image_shape"][-1]])
            elif "noise" in self._run:
                drawn.append(self._noise(given, 0, 0))
        return np.concatenate(drawn)[: len(seeds)] if drawn else None

    def seconds_of_a_call(self) -> float:
        """Return how long a call of the network takes, the median over one second."""
        name = next(name for name in ("step", "denoise", "generate") if name in self._run)
        details = self._run[name].get_input_details()
        inputs = {key: np.zeros(of["shape"], of["dtype"]) for key, of in details.items()}
        calls = self.about["network_calls"] if name == "generate" else 1
        spent = []
        while sum(spent) < 1:
            began = time.perf_counter()
            self._run[name](**inputs)
            spent.append(time.perf_counter() - began)
        return statistics.median(spent) / calls

    def _paint(self, paint, seeds, labels, calls, progress):
        """Return the pictures that `paint` makes of batches of seeds and labels, in so many calls each."""
        labels = _labels(labels, seeds, self.about["num_classes"])
        return self._painted(paint, seeds, labels, calls, progress)

    def _painted(self, paint, seeds, labels, calls, progress):
        batch = self.about["batch_size"]
        done, total = 0, -(-len(seeds) // batch) * calls

        def advance():
            nonlocal done
            done += 1
            progress(done, total)

        for first in range(0, len(seeds), batch):
            chunk = slice(first, first + batch)
            given = {"seed": np.resize(np.array(seeds[chunk], np.int32), batch)}
            if labels is not None:
                given["label"] = np.resize(np.array(labels[chunk], np.int32), batch)
            yield from paint(given, advance)[: len(seeds[chunk])].astype(np.uint8)

    def _walked(self, x, rows, given, advance, **edit):
        """Return x after these rows, by denoise and noise."""
        label = {name: value for name, value in given.items() if name == "label"}
        return walked(
            x,
            rows,
            self.about["sampler"]["clip"],
            lambda **of: self._run["denoise"](**of, **label),
            lambda index: self._noise(given, 1, index),
            advance,
            **edit,
        )

    def _noise(self, given, stream, index):
        numbers = {"stream": np.array([stream], np.int32), "index": np.array([index], np.int32)}
        return self._run["noise"](seed=given["seed"], **numbers)["noise"]

    def _num_timesteps(self):
        return len(self.about["schedule"]["alpha_bars"])

    def _editable_rows(self, num_steps):
        """Return the rows of a walk that may begin at any of them, and go back."""
        self._check_freedom("variations and inpainting need")
        return self._rows(num_steps)

    def _labels_of_edit(self, labels):
        """Return the labels of a picture that is edited, which no seed tells."""
        if labels is None and self.about["num_classes"]:
            raise InputError(f"--labels are needed here: the model has {self.about['num_classes']} classes")
        return labels

    def _check_freedom(self, purpose):
        missing = {"denoise", "noise"} - set(self._run)
        if missing:
            raise InputError(f"{purpose} the signatures denoise and noise. Received: a file without {min(missing)}")
        name = self.about["sampler"]["name"]
        if name not in ("ancestral", "ddim"):
            raise InputError(f"{purpose} a file of the sampler ancestral or ddim. Received: one of {name}")

    def _rows(self, num_steps):
        """Return the steps, from noise to a picture, as in `steps`."""
        if num_steps is None:
            return steps.of_file(self.about)
        self._check_freedom("--num_steps needs")
        return steps.respaced(self.about, num_steps)


def _labels(labels, seeds, classes):
    """Check labels and return one a seed, or None for a model without classes."""
    if not classes:
        if labels is not None:
            raise InputError("--labels were given, but the model has no classes")
        return None
    if labels is None:
        return [seed % classes for seed in seeds]
    if len(labels) == 1:
        labels = labels * len(seeds)
    if len(labels) != len(seeds):
        raise InputError(f"--labels must be one a seed, or one. Received: {len(labels)} for {len(seeds)} seeds")
    if not all(0 <= label < classes for label in labels):
        raise InputError(f"--labels must lie in 0 .. {classes - 1}. Received: {min(labels)} to {max(labels)}")
    return labels
