"""An exported .tflite on a device: the walk from seeds to pictures, and pictures from pictures.

It needs NumPy and LiteRT, or tflite-runtime, and runs on Python 3.7 and newer. A file with the signatures start, step
and finish is walked by these, else by denoise and noise and the steps that NAME.json lists, else generate paints.
Editing, and steps of another number, always go by denoise and noise.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import pathlib
import re
import statistics
import time

import numpy as np

try:
    from .description import InputError, expanded, read
except ImportError:  # of the script generate.py, beside which there is no package
    from description import InputError, expanded, read

_JUMP_LENGTH = 10  # Lugmayr et al. 2022, section 5.1
_SAMPLERS = {
    "ancestral": "ancestral sampling",
    "ddim": "DDIM",
    "dpm_solver": "DPM-Solver++",
    "heun": "Heun's method",
    "predictor_corrector": "predictor-corrector sampling",
}
_WAYS = {  # to a picture, the first that a file has
    "step": {"start", "step", "finish"},
    "denoise": {"denoise", "noise"},
    "generate": {"generate"},
}
_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")


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
        path = expanded(path)
        self.about = read(path)
        if _sha256(path) != self.about["sha256"]:
            raise InputError(
                f"{path} must be the file that {path.with_suffix('.json').name} describes: {self.about['bytes']} bytes "
                f"of another sha256. Received: {path.stat().st_size} bytes, truncated, altered or of another export"
            )
        try:
            name, runtime = load(path, threads, xnnpack, self.about["min_runtime_version"])
            self._run = {name: runtime.get_signature_runner(name) for name in runtime.get_signature_list()}
        except InputError as error:
            raise InputError(f"{path} {error}") from None
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{path} cannot be run by LiteRT: {str(error).splitlines()[0]}") from None
        self.runtime = f"{name}, {count(threads, 'thread')}, {'with' if xnnpack else 'without'} XNNPACK"
        self._check_signatures(path)
        self._way = next((way for way, needed in _WAYS.items() if self._needed(way, needed) <= set(self._run)), None)
        if self._way is None:
            needed = "; or ".join(", ".join(sorted(names)) for names in _WAYS.values())
            raise InputError(f"{path} must have the signatures {needed}. Received: {', '.join(self._run)}")

    def _needed(self, way, needed):
        """Return the signatures of a way, with those that draw the noise of a file for GPUs."""
        inputs = self._run[way].get_input_details() if way in self._run else {}
        drawing = {"noise"} if "noise" in inputs else {"start"} if way == "generate" and "x" in inputs else set()
        return needed | drawing

    def _check_signatures(self, path):
        """Check that inputs have the shapes and classes of the side file."""
        batch, channels = self.about["batch_size"], self.about["state_channels"]
        height, width, colours = self.about["image_shape"]
        shapes = {"seed": [batch], "label": [batch], "t": [batch]}
        for name, run in self._run.items():
            shapes["x"] = [batch, height, width, colours if name == "denoise" else channels]
            inputs = run.get_input_details()
            same = all(inputs[name]["shape"].tolist() == shape for name, shape in shapes.items() if name in inputs)
            with_label = name in ("generate", "step", "denoise") and bool(self.about["num_classes"])
            if not same or ("label" in inputs) != with_label:
                side = path.with_suffix(".json")
                raise InputError(f"{side} must describe {path.name}. Received: other batches, shapes or classes")

    def generate(self, seeds, labels=None, num_steps=None, progress=lambda done, calls: None) -> np.ndarray:
        """Return pictures of seeds.

        Args:
            seeds: integers, one a picture.
            labels: classes, one a seed or one for all; None = seed modulo classes.
            num_steps: steps, at most T; None = those of the file.
            progress: called with the calls of the network that are done and their number, after each.

        Returns:
            uint8 (N, H, W, C).

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
            image = called("generate", given, **start)["image"]
            advance()
            return image

        def by_step(given, advance):
            x = called("start", given)["x"]
            for index in range(len(rows)):
                x = called("step", given, x=x, index=np.array([index], np.int32))["x"]
                advance()
            return self._run["finish"](x=x)["image"]

        def by_denoise(given, advance):
            return _image(self._walked(self._noise(given, 0, 0), rows, given, advance))

        ways = {"step": by_step, "denoise": by_denoise, "generate": by_generate}
        way = self._way if num_steps is None else "denoise"
        return self._paint(ways[way], seeds, labels, 1 if way == "generate" else len(rows), progress)

    def variations(
        self, picture, strength, seeds, labels=None, num_steps=None, progress=lambda done, calls: None
    ) -> np.ndarray:
        """Return pictures like the given one: noise is added up to a level, then taken away.

        Args:
            picture: uint8 (H, W, C).
            strength: 0 = the picture itself, 1 = what the seeds generate without it.
            seeds: as in `generate`.
            labels: one a seed or one for all; needed by a model with classes.
            num_steps: as in `generate`.
            progress: as in `generate`.

        Returns:
            uint8 (N, H, W, C).
        """
        if not 0 <= strength <= 1:
            raise InputError(f"--strength must lie in [0, 1]. Received: {strength}")
        rows = self._editable_rows(num_steps)
        levels = np.array([0, *(row["index"] + 1 for row in reversed(rows))])
        rows = rows[len(rows) - int(np.argmin(np.abs(levels - strength * self._num_timesteps()))) :]
        x_0 = picture.astype(np.float32) / np.float32(127.5) - 1

        labels = self._labels_of_edit(labels)

        def vary(given, advance):
            x = self._noise(given, 0, 0)
            if not rows:
                x = np.broadcast_to(x_0, x.shape)
            elif rows[0]["index"] < self._num_timesteps() - 1:
                alpha_bar = rows[0]["alpha_bar"]
                x = math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * x
            return _image(self._walked(x, rows, given, advance))

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
    ) -> np.ndarray:
        """Return the picture with its unknown pixels painted (Lugmayr et al. 2022, "RePaint", algorithm 1).

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
            uint8 (N, H, W, C).
        """
        rows = self._editable_rows(num_steps)
        if resamplings < 1:
            raise InputError(f"--resamplings must be at least 1. Received: {resamplings}")
        if jump_length is None:
            jump_length = min(_JUMP_LENGTH, max(len(rows) - 1, 1))
        elif jump_length < 1 or (resamplings > 1 and jump_length >= len(rows)):
            raise InputError(
                f"--jump_length must be at least 1, and less than the {count(len(rows), 'step')} "
                f"unless --resamplings=1. Received: {jump_length}"
            )
        labels = self._labels_of_edit(labels)
        order, climbs = _resampled(len(rows), jump_length, resamplings)
        reached = np.array([*(row["alpha_bar"] for row in rows), 1.0])  # of the levels, from noise to the picture
        x_0 = picture.astype(np.float32) / np.float32(127.5) - 1

        def edit(given, x, row):
            """Set the known pixels at the level reached, then go back as far as RePaint does here."""
            level = order[row] + 1
            noised = math.sqrt(reached[level]) * x_0 + math.sqrt(1 - reached[level]) * self._noise(given, 2, row)
            x = np.where(known[..., np.newaxis], noised, x)
            kept = reached[level - climbs[row]] / reached[level]
            return math.sqrt(kept) * x + math.sqrt(1 - kept) * self._noise(given, 3, row)

        def repaint(given, advance):
            x = self._noise(given, 0, 0)
            return _image(self._walked(x, [rows[row] for row in order], given, advance, edit))

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
        batch = self.about["batch_size"]
        labels = _labels(labels, seeds, self.about["num_classes"])
        done, total = 0, -(-len(seeds) // batch) * calls

        def advance():
            nonlocal done
            done += 1
            progress(done, total)

        pictures = []
        for first in range(0, len(seeds), batch):
            chunk = slice(first, first + batch)
            given = {"seed": np.resize(np.array(seeds[chunk], np.int32), batch)}
            if labels is not None:
                given["label"] = np.resize(np.array(labels[chunk], np.int32), batch)
            pictures.append(paint(given, advance)[: len(seeds[chunk])].astype(np.uint8))
        return np.concatenate(pictures)

    def _walked(self, x, rows, given, advance, edit=lambda given, x, row: x):
        """Return x after these rows, by denoise and noise; `edit` changes it after each."""
        memory, clip = x, self.about["sampler"]["clip"]
        label = {name: value for name, value in given.items() if name == "label"}
        for index, row in enumerate(rows):
            t = np.full(len(x), row["t"], np.int32)
            found = self._run["denoise"](x=x.astype(np.float32), t=t, **label)
            x_0, std = _clipped(found["x0"], clip), row["noise_std"]
            if "log_variance_low" in row:
                low, high = row["log_variance_low"], row["log_variance_high"]
                std = std * np.exp(0.5 * (low + (found["fraction"] + 1) / 2 * (high - low)))
            after = row["from_x0"] * x_0 + row["from_xt"] * x
            if np.any(std):
                after = after + std * self._noise(given, 1, index)
            if "from_memory" in row:
                after = after + row["from_memory"] * memory
                memory = row["memory_from_x0"] * x_0 + row["memory_from_xt"] * x + row["memory_from_memory"] * memory
            x = edit(given, after, index)
            advance()
        return x

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
        """Return the steps, from noise to a picture, each with its place in the schedule and its alpha_bar."""
        schedule, steps = self.about["schedule"], self.about["steps"]
        if num_steps is None:
            columns = {name: column for name, column in steps.items() if isinstance(column, list)}
            rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        else:
            self._check_freedom("--num_steps needs")
            if not 1 <= num_steps <= self._num_timesteps():
                raise InputError(f"--num_steps must lie in 1 .. {self._num_timesteps()}. Received: {num_steps}")
            rows = _respaced(schedule, self.about["sampler"], num_steps)
        names = schedule.get("timesteps") or range(self._num_timesteps())
        index_of = {t: index for index, t in enumerate(names)}
        return [
            {**row, "index": index_of[row["t"]], "alpha_bar": schedule["alpha_bars"][index_of[row["t"]]]}
            for row in rows
        ]

    def way(self, num_steps=None) -> str:
        """Return a description of the sampler and its steps, in words."""
        sampler, calls = self.about["sampler"], self.about["network_calls"]
        steps = num_steps or sampler["num_steps"]
        words = f"{count(steps, 'step')} of {_SAMPLERS.get(sampler['name'], sampler['name'])}"
        return words if num_steps or calls == steps else f"{words}, {count(calls, 'network call')}"


def load(path: pathlib.Path, threads: int, xnnpack: bool, needed: str):
    """Return the runtime's name and the interpreter of a .tflite that needs TensorFlow Lite `needed`, as "2.13.0".

    The file is mapped into memory, not read: XNNPACK keeps its own copy of the weights.

    Raises:
        InputError: no runtime is installed, or one that is older, or one that was built for another NumPy.
        ValueError, RuntimeError: the runtime's own, of a file that it cannot load.
    """
    name, interpreter = _runtime()
    version = getattr(importlib.import_module(name), "__version__", "of an unknown version")
    runtime = f"{name.replace('_', '-')} {version}"
    # ai-edge-litert begins at 1.0 after TensorFlow's 2.17, the most that a file needs.
    if name != "ai_edge_litert" and _numbers_of(version) < _numbers_of(needed):
        raise InputError(
            f"needs TensorFlow Lite {needed} or newer, or ai-edge-litert of any version. Received: {runtime}"
        )
    options = {} if xnnpack else {"experimental_op_resolver_type": _without_delegates(interpreter)}
    try:
        try:
            loaded = interpreter.Interpreter(model_path=str(path), num_threads=threads, **options)
        except (AttributeError, TypeError):  # ai-edge-litert 1.1.0 fails where it is told of threads
            loaded = interpreter.Interpreter(model_path=str(path), **options)
    except SystemError:
        raise InputError(
            f"needs a NumPy that {runtime} was built for: pip install 'numpy<2'. Received: NumPy {np.__version__}"
        ) from None
    return runtime, loaded


def _sha256(path):
    found = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def _runtime():
    """Import the first runtime that there is; return the name of its package, and its interpreter module."""
    reasons = []
    for module in _RUNTIMES:
        try:
            return module.split(".")[0], importlib.import_module(module)
        except Exception as error:  # one built for another NumPy raises what it likes
            if not isinstance(error, ModuleNotFoundError):
                reasons.append(f"{module} cannot be imported: {error!r:.200}")
    raise InputError(
        "needs a runtime: pip install ai-edge-litert, or on boards that have no wheel of it "
        f"pip install tflite-runtime 'numpy<2'. Received: {'; '.join(reasons) or 'none of them'}"
    )


def _without_delegates(interpreter):
    try:
        return interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    except AttributeError:
        raise InputError("cannot be run with --no-xnnpack: the installed runtime has no such choice") from None


def _numbers_of(version: str) -> list[int]:
    """Return the first three numbers of a version, which later ones may follow: 2.14.0rc1, 2.14.0.dev2023."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _respaced(schedule, sampler, num_steps):
    """Return rows of the file's sampler in so many steps, evenly spaced and counted from the end."""
    is_ddim = sampler["name"] == "ddim"
    variance = "small" if is_ddim else sampler.get("variance", "small")
    if variance not in ("small", "large"):
        raise InputError(f"--num_steps needs a file with variance small or large. Received: {variance!s:.40}")
    alpha_bars = np.array(schedule["alpha_bars"])
    kept = np.round(np.arange(1, num_steps + 1) * (len(alpha_bars) / num_steps)).astype(int) - 1
    names = schedule.get("timesteps") or range(len(alpha_bars))
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
    return rows[::-1]


def _resampled(num_steps, jump_length, resamplings):
    """Return RePaint's order of steps: the step to take at each row, and how many noising steps follow it."""
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


def _clipped(x_0, clip):
    """Return x_0 clipped to [-1, 1]; or to its own 99.5 % quantile and divided by it; or as it is."""
    if clip == "dynamic":
        sizes = np.sort(np.abs(x_0).reshape(len(x_0), -1), axis=1)
        limit = np.maximum(sizes[:, math.ceil(0.995 * (sizes.shape[1] - 1))], 1).reshape(-1, 1, 1, 1)
        return np.clip(x_0, -limit, limit) / limit
    return np.clip(x_0, -1, 1) if clip else x_0


def _image(x):
    """Return x in [-1, 1] as grey levels, 0 .. 255."""
    return np.clip(np.round((x + 1) * 127.5), 0, 255)


def count(number: int, what: str) -> str:
    """Return "1 step", "2 steps"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


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
