"""The run directory, through which training, sampling, evaluation and export exchange files.

    config.json          the configuration, the data it was trained on and the version
    checkpoints/         all that training needs to resume (`kddpm.runs.checkpoints`): the last three, and the best
    ema.weights.h5       the averaged weights, all that generation needs; ema.weights.json holds their digest
    snapshots/           two other averages every snapshot_every steps (`kddpm.runs.snapshots`)
    metrics.csv          a row every log_every steps
    loss.png             the loss curve of metrics.csv
    frechet.json, .png   Frechet distances of the pictures, every eval_every steps (`kddpm.runs.monitoring`)
    best/                the averaged weights that had the lowest, as a run to sample, evaluate and export
    samples/             a grid of pictures every sample_every steps
    tensorboard/         the same numbers and pictures, if tensorboard is installed
    data/                decoded images that do not fit in memory, and features of images
    evaluation/          results of evaluate.py and of the doctor

Files are written under temporary names and renamed: a kill leaves the old file or the new one. metrics.csv grows line
by line; an incomplete last line is dropped when the run resumes.
"""

import contextlib
import csv
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator

from kddpm.base.errors import InputError, first_line
from kddpm.base.files import PART, expand, locked, read_json, replacing
from kddpm.base.version import __version__
from kddpm.data import labels
from kddpm.data.sources import ImageData
from kddpm.runs.config import CHANGEABLE, TrainConfig

COLUMNS = ("step", "loss", "gradient_norm", "skipped_steps", "learning_rate")  # of metrics.csv


class RunDirectory:
    """Paths and files of one run.

    Args:
        path: the directory; created by `locked`.
        writes: whether this process writes the files; of several workers only the chief does.
    """

    def __init__(self, path: str | os.PathLike, writes: bool = True):
        self.path = pathlib.Path(expand(path))
        self.writes = writes
        self.config_path = self.path / "config.json"
        self.checkpoints_path = self.path / "checkpoints"
        self.weights_path = self.path / "ema.weights.h5"
        self.metrics_path = self.path / "metrics.csv"
        self.loss_curve_path = self.path / "loss.png"
        self.snapshots_path = self.path / "snapshots"
        self.frechet_path = self.path / "frechet.json"
        self.frechet_curve_path = self.path / "frechet.png"
        self.best_path = self.path / "best"
        self.samples_path = self.path / "samples"
        self.data_path = self.path / "data"
        self.evaluation_path = self.path / "evaluation"

    def grid_path(self, step: int) -> pathlib.Path:
        """Return the path of the grid of pictures of a step."""
        return self.samples_path / f"step_{step:07d}.png"

    def read(self) -> tuple[TrainConfig, dict]:
        """Return the configuration and the description of the data, as written by `write`.

        Raises:
            InputError: no run there, or its config.json cannot be read or used.
        """
        try:
            stored = read_json(self.config_path)
            if not isinstance(stored, dict) or not {"config", "data"} <= set(stored):
                raise ValueError("it must hold `config` and `data`, as train.py writes them")
            config, data = TrainConfig(**stored["config"]), dict(stored["data"])
            _check_data(data, config)
            return config, data
        except FileNotFoundError:
            raise InputError("run_dir", f"must be a run of train.py: no config.json in {self.path}") from None
        except InputError as error:
            raise InputError(f"{self.config_path} holds a configuration that cannot be used: {error}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.config_path} cannot be read: {error}") from None

    def check(
        self,
        config: TrainConfig,
        overridden: Collection[str] = (),
        cache_dir: str | os.PathLike | None = None,
    ) -> None:
        """Check that the directory is free for a new run or has a run that can resume.

        Args:
            config: the configuration to train.
            overridden: names of fields that may differ; with "dataset" the content of the data may differ too.
            cache_dir: folder of decoded images, which may be in a new run's directory before the run begins.

        Raises:
            InputError: the directory has other files, or a run of another configuration; nothing has been written.
        """
        unknown = sorted(set(overridden) - set(vars(config)))
        if unknown:
            raise InputError("override_resume", "must name flags of the configuration", ",".join(unknown))
        if not self.config_path.exists():
            files = {path for path in self.path.glob("*") if not path.name.startswith(PART)}
            if files - {self.data_path, pathlib.Path(expand(cache_dir or self.data_path))}:
                raise InputError("run_dir", "must be new, empty or a run of train.py", f"{self.path}, with files")
            if self.path.exists() and not self.path.is_dir():
                raise InputError("run_dir", "must be a directory", f"the file {self.path}")
            return
        stored, _ = self.read()
        if any(self.checkpoints_path.glob("step_*.json")):
            _check_snapshots(self.path, stored, config)
        changeable = {*CHANGEABLE, *overridden}
        if config.learning_rate_decay != "none" and "steps" not in overridden:
            changeable.discard("steps")  # on which the learning rate depends
        fixed = [name for name in vars(config) if name not in changeable]
        differing = [name for name in fixed if getattr(stored, name) != getattr(config, name)]
        if differing:
            changes = "; ".join(
                f"{{{name}}} was {_shown(getattr(stored, name))}, now {_shown(getattr(config, name))}"
                for name in differing
            )
            raise InputError(
                "run_dir",
                f"{self.path} belongs to another configuration: {changes}. To go on all the same, name what may differ "
                "with {override_resume}",
                override_resume=...,
                **dict.fromkeys(differing, ...),
            )

    @contextlib.contextmanager
    def locked(self, needed_bytes: int) -> Iterator[None]:
        """Create the directory and lock it against training by other processes while the block runs.

        Args:
            needed_bytes: disk space that the run will take.

        Raises:
            InputError: another process trains here, the disk has too little space, or the directory cannot be created.
        """
        if not self.writes:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path))
                free = shutil.disk_usage(self.path).free
                kept = (self.checkpoints_path, self.snapshots_path)
                there = sum(p.stat().st_size for folder in kept for p in folder.glob("step_*"))
                for folder in (self.path, *kept, self.samples_path, self.data_path, self.best_path):
                    for left in folder.glob(f"{PART}*"):  # left by a kill within `files.replacing`
                        shutil.rmtree(left, ignore_errors=True)
            except BlockingIOError:
                raise InputError("run_dir", f"{self.path} is being trained by another process") from None
            except OSError as error:
                raise _not_writable(self.path, error) from None
            if free + there < needed_bytes:
                raise InputError(
                    "run_dir",
                    f"needs about {needed_bytes / 1e6:.0f} MB for checkpoints and snapshots",
                    f"{self.path}, with {free / 1e6:.0f} MB free",
                )
            yield

    def write(self, config: TrainConfig, data: dict) -> None:
        """Write config.json.

        Args:
            config: the configuration, already `check`ed.
            data: description of the data, with its `digest`.

        Raises:
            InputError: the file cannot be written.
        """
        if not self.writes:
            return
        try:
            content = {"kddpm": __version__, "config": vars(config), "data": data}
            with replacing(self.config_path) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
            self.samples_path.mkdir(exist_ok=True)
        except OSError as error:
            raise _not_writable(self.path, error) from None

    def check_same_data(self, data: dict) -> None:
        """Check that the run, if there is one, was begun with these data.

        Raises:
            InputError: it was begun with other data.
        """
        if not self.config_path.exists():
            return
        _, stored = self.read()
        if stored["digest"] != data["digest"]:
            raise InputError(
                "dataset",
                f"{data['source']} is not what {{run_dir}} {self.path} was trained on: {_counted(stored)} then, "
                f"{_counted(data)} now, and other bytes",
                run_dir=...,
            )

    def rows(self) -> list[dict]:
        """Return the rows of metrics.csv as text, without an incomplete last line.

        Raises:
            InputError: the file has other columns, or values that are not numbers.
        """
        if not self.metrics_path.exists():
            return []
        try:
            content = self.metrics_path.read_text()
            reader = csv.DictReader(content[: content.rfind("\n") + 1].splitlines())
            rows = list(reader)
            if reader.fieldnames and tuple(reader.fieldnames) != COLUMNS:
                raise ValueError(f"expected the columns {','.join(COLUMNS)}. Received: {','.join(reader.fieldnames)}")
            for row in rows:
                _ = int(row["step"]), [float(value) for value in row.values()]
            return rows
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError(f"{self.metrics_path} must hold rows of numbers: {first_line(error)}") from None

    def append_row(self, row: dict) -> None:
        """Append a row to metrics.csv, after the header if it is the first.

        Args:
            row: {column: value} of all `COLUMNS`.

        Raises:
            InputError: the row cannot be written.
        """
        if not self.writes:
            return
        new = not self.metrics_path.exists() or not self.metrics_path.stat().st_size
        with writing(self.metrics_path), open(self.metrics_path, "a", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def forget_rows_after(self, step: int) -> None:
        """Remove the rows of metrics.csv after `step`, whose steps will be taken again."""
        if not self.writes or not self.metrics_path.exists():
            return
        rows = self.rows()
        lines = [",".join(row.values()) for row in rows if int(row["step"]) <= step]
        with replacing(self.metrics_path) as temporary:
            temporary.write_text("".join(f"{line}\r\n" for line in [",".join(COLUMNS), *lines]), newline="")


@contextlib.contextmanager
def writing(path: pathlib.Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of writing `path` in the block into an `InputError`, which ends training.

    Training could do without this file, but the disk would fail again at the next one.

    Args:
        path: the file.
        *errors: exceptions that mean a failed write, besides OSError.

    Raises:
        InputError: the file cannot be written.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except kinds as error:
        raise InputError(f"{path} cannot be written, checkpoints are whole: {first_line(error)}") from None


def _not_writable(path: pathlib.Path, error: OSError) -> InputError:
    return InputError("run_dir", "must be writable", f"{error.filename or path}: {error.strerror}")


_DATA = {"source": str, "digest": str, "images": int, "image_shape": list, "class_names": list}


def _check_data(data: dict, config: TrainConfig) -> None:
    """Check that a description of data is well-formed and fits the configuration.

    Raises:
        ValueError: it is not, or does not.
    """
    if odd := sorted(set(_DATA) ^ set(data)):
        raise ValueError(
            f"its `data` must hold {', '.join(_DATA)}. {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} "
            "missing or unknown"
        )
    for name, kind in _DATA.items():
        if type(data[name]) is not kind:
            raise ValueError(f"`{name}` of its `data` must be {kind.__name__}. Received: {data[name]!r:.80}")
    shape = data["image_shape"]
    if len(shape) != 3 or not all(type(side) is int and side >= 1 for side in shape) or shape[2] not in (1, 3):
        raise ValueError(f"`image_shape` of its `data` must be height, width and 1 or 3. Received: {shape!r:.80}")
    if (*config.image_size, config.channels or shape[2]) != tuple(shape):
        size = "x".join(str(side) for side in config.image_size)
        raise ValueError(f"`image_shape` of its `data` must be that of image_size={size}. Received: {shape!r:.80}")
    if not all(type(name) is str for name in data["class_names"]):
        raise ValueError("`class_names` of its `data` must be text")


def _check_snapshots(path, stored, config):
    """Check that the checkpoints hold the averages for snapshots, or hold none, as the configuration wants it."""
    before, now = stored.snapshot_every, config.snapshot_every
    if bool(before) != bool(now):
        expected = "above 0" if before else "0"
        raise InputError("snapshot_every", f"must be {expected}, as it was when {path} was begun", now)


def check_classes(name: str, source: ImageData, config: TrainConfig, trained_on: dict) -> None:
    """Check that images have the classes of a run, if it has any.

    Args:
        name: argument that named the images.
        source: the images.
        config: of the run.
        trained_on: its description of the data, as `RunDirectory.read` returns it.

    Raises:
        InputError: no labels, or other classes.
    """
    if config.num_classes is None:
        return
    if source.labels is None:
        raise InputError(name, f"must have labels, as the run has {config.num_classes} classes", source.source)
    expected = trained_on["class_names"][: config.num_classes]
    received = list(source.class_names)[: config.num_classes]
    numbers = [str(i) for i in range(len(received))]
    has_names = received in (expected[: len(received)], numbers) or source.digest == trained_on["digest"]
    if not has_names or source.labels.max() >= config.num_classes:
        wanted, given = labels.shown(expected), labels.shown(source.class_names)
        raise InputError(name, f"must have the run's classes, {wanted}", f"{source.source}, with {given}")


def _shown(value) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def _counted(data: dict) -> str:
    return f"{data['images']} images of {'x'.join(str(n) for n in data['image_shape'])}"
