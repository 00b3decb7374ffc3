"""`examine(run_dir)`: says whether a run is healthy, during it or after it; prints a table and writes it to the run.

    doctor.json    every figure with what is expected and its verdict, and the losses at some t
    doctor.png     the losses beside those of the best linear denoiser, and pictures beside real ones

`findings` and `network_findings` judge the figures, `probes` measures those of the network. At the end of training
`in_a_line` judges what needs no network.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from kddpm import data, plots
from kddpm.base import arguments, extras, progress
from kddpm.base.errors import InputError
from kddpm.base.files import expand, sha256
from kddpm.base.version import __version__
from kddpm.data import image_files
from kddpm.evaluation import metrics
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import build, checkpoints, findings, network_findings, probes, weights_files
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory, check_classes
from kddpm.runs.findings import Course, Finding
from kddpm.runs.network_findings import Looks
from kddpm.runs.results import write_json
from kddpm.theory import linear_denoiser, parametrization, timesteps

_TIMESTEPS = 12  # t at which losses are measured, evenly from 0 to T - 1
# Labels are tried where noise hides the shapes, and most of what they leave open is decided: at a signal-to-noise ratio
# of 16 for the whole picture, 0.25 a pixel of 8x8. Below the least alpha_bar errors of eps would cover their effect.
_HIDING, _LEAST_SIGNAL = 16, 0.05
_GREY_LEVEL = 1 / 127.5  # noise below it cannot be seen, and bfloat16 and the best denoiser lose it
_SELDOM = 0.02  # times as often as evenly: a t that training draws less often is left out on purpose
_PICTURES, _STEPS, _SAMPLER = 64, 25, "ddim"
_SHOWN = 25  # pictures in the figure
_REAL = 1000  # images whose looks are compared with those of the pictures
_COMPARED = 300  # images whose nearest other says how near a copy is
_MOST_SEARCHED = 2**31  # bytes of the images among which copies are looked for
_PAUSE = 1.0  # seconds in which a training that wrote the weights also writes the rest of a checkpoint


def examine(
    run_dir: str | os.PathLike,
    *,
    held_out: str | None = None,
    num_images: int = 128,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    tfds_data_dir: str | None = None,
    cache_dir: str | None = None,
    skip_bad_images: bool = False,
    verbose: bool = True,
) -> dict:
    """Examine a run.

    Args:
        run_dir: directory of a run of `kddpm.training`. Without a checkpoint, what needs no network is examined.
        held_out: as in `data.load`, images that the run was not trained on; None = whether it memorises is told by
            copies alone.
        num_images: images on which losses are measured, at each of 12 t.
        seed: of the choice of images, and of the noise; int32.
        out: folder for the files; None = evaluation/ of the run.
        tfds_data_dir: as in `training.train`.
        cache_dir: the same.
        skip_bad_images: the same.
        verbose: whether to say what is happening, and print the table.

    Returns:
        The content of doctor.json; "findings" has the fields of each `Finding`.

    Raises:
        InputError: no such run, or one without a row of metrics.csv and without a checkpoint that can be read; images
            of another shape or without labels; a number out of range.
    """
    arguments.count("num_images", num_images, 2)
    arguments.int32("seed", [seed])

    def say(line):
        if verbose:
            print(line, flush=True)

    run = RunDirectory(run_dir)
    config, trained_on = run.read()
    if not checkpoints.saved_steps(run):
        if run.weights_path.exists():
            expected = (
                "must have checkpoints, and holds averaged weights alone; of a best/ name the run that it lies in"
            )
            raise InputError("run_dir", expected, run.path)
        if not run.rows():
            expected = "must have a row of metrics.csv or a checkpoint, and these come with --log_every and "
            raise InputError("run_dir", f"{expected}--checkpoint_every", run.path)
    reading: dict[str, Any] = {"tfds_data_dir": tfds_data_dir, "cache_dir": cache_dir or run.data_path}
    reading |= {"skip_bad_images": skip_bad_images, "progress": verbose}
    say(f"Reading {image_files.printable(config.dataset)} ...")
    source = data.load(config.dataset, config.image_size, config.channels, **reading)
    _check("dataset", source, config, trained_on)
    others = None
    if held_out:
        height, width, channels = trained_on["image_shape"]
        others = data.load(held_out, (height, width), channels, **reading)
        if others.changes:
            say(f"Images of {others.source}: {others.changes}")
        if others.digest in (source.digest, trained_on["digest"]):
            raise InputError("held_out", "must be other images than those of the run", others.source)
        _check("held_out", others, config, trained_on)
    steps = checkpoints.saved_steps(run)  # a training beside this has come further while images were read
    of_network = None
    if others and not steps:
        say(f"Nothing is said of {others.source} before there is a checkpoint")
    if steps:
        model = build.build_model(config, tuple(trained_on["image_shape"]))
        of_network = _NetworkExamination(run, model, config, source, others, num_images, seed, steps)
        steps = of_network.steps
    rows = run.rows()
    course = Course.of(rows, config.warmup_steps)
    found = without_network(config, trained_on["digest"], source, rows)
    if of_network:
        found.append(findings.of_rows(course, steps[-1], config.log_every))
        with progress.bar(of_network.calls, "Examining", "image", "auto" if verbose else False) as bar:
            found += of_network.findings(bar.update)
    step = max([course.step, *steps])
    is_over = bool(steps) and steps[-1] >= config.steps
    found = found if is_over else findings.so_far(found, course.stands_still)
    found.append(findings.of_progress(step, config.steps, _seconds_a_step(run, course, steps)))
    content = {
        "kddpm": __version__,
        "run_dir": str(run_dir),
        "weights_sha256": of_network and of_network.digest,
        "step": of_network.step if of_network else step,
        "held_out": others and others.digest,
        "num_images": of_network.num_images if of_network else 0,
        "seed": seed,
        "is_healthy": not any(finding.fault for finding in found),
        "findings": [dataclasses.asdict(finding) for finding in found],
        "losses": of_network.table if of_network else {},
    }
    without = "" if of_network else ", without a checkpoint so far"
    say("\n".join(report(f"{run.path} at step {content['step']:,} of {config.steps:,}{without}", found, is_over)))
    folder = run.evaluation_path if out is None else pathlib.Path(expand(out))
    write_json(folder / "doctor.json", content)
    need = extras.missing("plots")
    if of_network and need is None:
        real = probes.sample(source)
        real = real[:: max(len(real) // _SHOWN, 1)][:_SHOWN]
        plots.health(of_network.table, of_network.painted[:_SHOWN], real, folder / "doctor.png")
    figure = " and doctor.png" if need is None else f" (the figure {need})"
    say(f"doctor.json{figure if of_network else ''} in {folder}")
    return content


def report(heading: str, found: Collection[Finding], is_over: bool = True) -> Iterator[str]:
    """Yield the lines of a table of findings, the sentences of those with a fault, and a verdict.

    Args:
        heading: the first line.
        found: the findings.
        is_over: whether the run took all its steps.
    """
    cells = [["", "measured", "expected"], *([each.what, each.measured, each.expected] for each in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    yield heading
    for marked, line in zip([False, *(each.fault for each in found)], cells, strict=True):
        texts = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        yield f"{'!' if marked else ' '} {'  '.join(texts)}".rstrip()
    sick = [each for each in found if each.fault]
    yield from (f"{each.fault}: {each.advice}." for each in sick)
    if not sick:
        yield "healthy" if is_over else "healthy so far"
    elif len(sick) > 1:
        yield f"{len(sick)} faults. Begin with the first: it may be the cause of the others."


def in_a_line(run: RunDirectory, config: TrainConfig, source: data.ImageData, reading: dict) -> str:
    """Return a verdict on what can be judged without the network, and the command that says more.

    Args:
        run: the run directory.
        config: its configuration.
        source: its images.
        reading: arguments of `data.load` that they were read with, which the command needs too.
    """
    found = without_network(config, source.digest, source, run.rows())
    first = next((each for each in found if each.fault), None)
    told = "images and losses" if Course.of(run.rows(), config.warmup_steps).is_long_enough else "images"
    verdict = f"{first.fault}: {first.advice}." if first else f"healthy, as far as {told} tell."
    given = {"run_dir": run.path, **{name: value for name, value in reading.items() if value}}
    flags = (f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}" for name, value in given.items())
    return f"{verdict} More by python -m kddpm.doctor {' '.join(flags)}"


def without_network(config: TrainConfig, digest: str, source: data.ImageData, rows: list[dict]) -> list[Finding]:
    """Return the findings of the images, the schedule and the course of the loss.

    Args:
        config: of the run.
        digest: of the images that it was trained on.
        source: its images as they are now.
        rows: of metrics.csv.
    """
    pixels = probes.sample(source)
    x_0 = probes.as_floats(pixels)
    flat = (np.ptp(pixels, axis=(1, 2)) == 0).all(axis=-1)
    schedule, course = config.noise_schedule, Course.of(rows, config.warmup_steps)
    found = [
        findings.of_digest(source.digest == digest),
        findings.of_range(pixels),
        findings.of_flat_images(flat.mean()),
        findings.of_variety(math.sqrt(x_0.var(axis=0).mean())),
        findings.of_polarity(x_0.mean(axis=(1, 2, 3))),
    ]
    if config.num_classes and source.labels is not None:
        found.append(findings.of_classes(np.bincount(source.labels, minlength=config.num_classes)))
    found += [findings.of_last_step(schedule, config), findings.of_first_step(schedule), findings.of_warm_up(config)]
    if course.step:
        found.append(findings.of_skipped_steps(course, config))
    found += findings.of_course(course, config, course.step >= config.steps)
    objective = config.objective
    is_mean_over_t = objective.weighting in ("simple", "min_snr") and objective.timestep_sampling != "log_normal"
    if is_mean_over_t and course.is_long_enough:
        linear = linear_denoiser.losses(schedule, objective.prediction, _variances(config, x_0))
        expected = float(np.mean(parametrization.loss_weights(schedule, objective) * linear))
        found.append(findings.of_training_loss(course.quarters[-1], expected, config))
    return found


def _variances(config: TrainConfig, x_0: np.ndarray) -> np.ndarray:
    """Return `linear_denoiser.variances` of the images as training sees them."""
    seen = np.concatenate([x_0, x_0[:, :, ::-1]]) if config.horizontal_flip else x_0
    return linear_denoiser.variances(seen)


def _check(name: str, source: data.ImageData, config: TrainConfig, trained_on: dict) -> None:
    """Check that a network of the run takes these images.

    Raises:
        InputError: another shape, too few images, or as `check_classes`.
    """
    expected, received = tuple(trained_on["image_shape"]), source.images.shape[1:]
    if received != expected:
        raise InputError(name, f"must have images of the shape {expected}, as the run", f"{source.source}, {received}")
    if len(source.images) < 2:
        raise InputError(name, "must have at least 2 images", f"{source.source}, with {len(source.images)}")
    check_classes(name, source, config, trained_on)


def _seconds_a_step(run: RunDirectory, course: Course, steps: list[int]) -> float:
    """Return the time of a step, from when checkpoints and the last row were written; NaN = they do not tell.

    Of several stretches the fastest counts: in the others the run may have stood still.
    """
    written = {step: run.checkpoints_path / f"step_{step:07d}.json" for step in steps} | {course.step: run.metrics_path}
    times = []
    for step, path in sorted(written.items()):
        with contextlib.suppress(FileNotFoundError):  # deleted by the training that goes on
            times += [(step, path.stat().st_mtime)] if step else []
    stretches = itertools.pairwise(times)
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in stretches if b[1] - a[1] > 1]  # of a copy all are shorter
    return min(rates, default=math.nan)


class _NetworkExamination:
    """The network of a run, and what is asked of it.

    Args:
        run: the run directory.
        model: its model, with the averaged weights.
        config: its configuration.
        source: its images.
        held_out: others, or None.
        num_images: on which losses are measured, at most.
        seed: of their choice, and of the noise.
        steps: of its checkpoints.

    Attributes:
        num_images: on which losses are measured.
        calls: how often an image is looked at.
        steps: of the checkpoints that are there.
        step: of the newest that can be read, whose weights are examined.
        digest: of the file of the averaged weights that were examined.
        table: {name: one value a t}, known after `findings`.
        painted: the pictures, uint8, known after `findings`.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: DiffusionModel,
        config: TrainConfig,
        source: data.ImageData,
        held_out: data.ImageData | None,
        num_images: int,
        seed: int,
        steps: list[int],
    ):
        self._run, self._model, self._config, self._seed, self.steps = run, model, config, seed, steps
        self._source, self._held_out = source, held_out
        self.num_images = min(num_images, *(len(some.images) for some in (source, held_out) if some))
        schedule = config.noise_schedule
        self._timesteps = np.unique(np.linspace(0, schedule.num_timesteps - 1, _TIMESTEPS).round()).astype(np.int32)
        ratio = _HIDING / math.prod(source.images.shape[1:3])
        middle = max(ratio / (1 + ratio), _LEAST_SIGNAL)
        self._middle = int(np.argmin(np.abs(schedule.alpha_bars - middle)))
        self.calls = len(self._timesteps) * self.num_images * (3 if held_out else 2)
        self.step, self.digest, self._about_weights = steps[-1], "", ""
        self._load()
        self._predict = probes.predictions(model.denoiser)
        searched = source.images[:: math.ceil(source.images.size / _MOST_SEARCHED)]
        self._originals = metrics.Originals(searched, mirrored=config.horizontal_flip, most=_COMPARED)
        self.table: dict[str, np.ndarray] = {}
        self.painted = np.empty(0, np.uint8)

    def _load(self) -> None:
        """Load the newest checkpoint that can be read, and the file of the weights that generate, which is to be of it.

        Raises:
            InputError: no checkpoint can be read.
        """
        network, path = self._model.ema_network, self._run.weights_path
        while True:
            steps = self.steps
            averaged = self._load_checkpoint()
            network.set_weights(averaged)
            if self.step < steps[-1]:  # the file is of a checkpoint that is gone, and may be whole
                return
            try:
                weights_files.load(network, path)
                own = zip(network.get_weights(), averaged, strict=True)
                is_same = all(np.array_equal(one, other, equal_nan=True) for one, other in own)
                self.digest, self._about_weights = sha256(path), "" if is_same else "others"
            except InputError:
                network.set_weights(averaged)
                self._about_weights = "damaged, or not there"
            if not self._about_weights:
                return
            time.sleep(_PAUSE)  # a training beside this writes the weights before the checkpoint is whole
            self.steps = checkpoints.saved_steps(self._run) or steps
            if self.steps == steps:
                return

    def _load_checkpoint(self) -> list[np.ndarray]:
        """Load the newest checkpoint that can be read, as training would; return its averaged weights."""
        averaged, own = self._model.ema_network.weights, self._model.network.weights
        for step in reversed(self.steps):
            try:
                self.digest, values = checkpoints.weights_of(self._run, self._model, step, [*averaged, *own])
            except InputError:
                if step == self.steps[0]:
                    raise
            else:
                self.step, self._own_weights = step, values[len(averaged) :]
                break
        return values[: len(averaged)]

    def findings(self, done: Callable[[int], object]) -> list[Finding]:
        """Return the findings of the network; `done` is told how many images are done."""
        found = [
            findings.of_checkpoint(self.step, self.steps[-1]),
            findings.of_weights(self._about_weights, is_over=self.step >= self._config.steps),
            *self._of_losses(done),
        ]
        real = probes.sample(self._source)
        looks = Looks.of(probes.as_floats(real[:: max(len(real) // _REAL, 1)]))
        if self._config.num_classes:
            found += self._of_labels(self._config.num_classes, math.sqrt(looks.variance))
        self.painted = self._paint()
        found += network_findings.of_pictures(Looks.of(probes.as_floats(self.painted)), looks, self._config)
        found.append(self._of_copies())
        if self._held_out:
            found.append(self._of_gap(self._held_out, done))
        return found

    def _of_losses(self, done) -> list[Finding]:
        """Return the findings of the losses at some t, of the average and of the weights themselves."""
        config, chosen = self._config, self._timesteps
        average = self._errors(self._source, done)
        with self._with_weights(self._own_weights):
            own = self._errors(self._source, done)
        along_axes = _variances(config, probes.as_floats(probes.sample(self._source)))
        schedule = config.noise_schedule
        linear = linear_denoiser.losses(schedule, config.prediction, along_axes)[chosen]
        is_judged = np.sqrt(schedule.one_minus_alpha_bars)[chosen] > _GREY_LEVEL
        if config.timestep_sampling == "log_normal":
            drawn = timesteps.log_normal_probabilities(schedule)[chosen]
            is_judged &= drawn * schedule.num_timesteps > _SELDOM
        losses, self._of_images = average.losses.mean(axis=1), average.losses.mean(axis=0)
        errors = average.losses.std(axis=1) / math.sqrt(average.losses.shape[1])
        self.table = {
            "t": chosen,
            "average": losses,
            "average_standard_error": errors,
            "weights": own.losses.mean(axis=1),
            "linear_denoiser": linear,
            "zeros": average.powers,
        }
        return [
            network_findings.of_output(float((average.outputs / average.powers).max()), config),
            network_findings.of_average(float(losses.mean() / own.losses.mean()), config, self.step),
            network_findings.of_losses(chosen, losses, errors, linear, average.powers, is_judged, config),
        ]

    def _of_labels(self, num_classes: int, deviation: float) -> list[Finding]:
        """Return the findings of the labels, for data of this standard deviation."""
        config, t = self._config, self._middle
        x_0, labels = self._chosen(self._source)
        change, share, error = probes.effect_of_labels(self._predict, x_0, labels, num_classes, t, self._seed)
        _, b = parametrization.x0_coefficients(config.noise_schedule, config.prediction)
        change *= abs(b[t]) / max(deviation, _GREY_LEVEL)
        return network_findings.of_labels(change, share, error, config)

    def _of_copies(self) -> Finding:
        """Return the finding of pictures that are copies."""
        found, since = self._originals.copies(self.painted), None
        if network_findings.are_copies(found.rate.value):
            since = self._since(lambda: network_findings.are_copies(self._originals.copies(self._paint()).rate.value))
        return network_findings.of_copies(found.rate.value, found.chance.value, since, self._config)

    def _of_gap(self, held_out: data.ImageData, done) -> Finding:
        """Return the finding of the loss on held-out images."""
        errors = self._errors(held_out, done).losses
        self.table["held_out"] = errors.mean(axis=1)
        losses = self._of_images, errors.mean(axis=0)

        def is_memorising():
            both = (self._errors(some, lambda _: None).losses.mean(axis=0) for some in (self._source, held_out))
            return network_findings.is_memorising(*both)

        since = self._since(is_memorising) if network_findings.is_memorising(*losses) else None
        return network_findings.of_gap(*losses, since, self._config)

    def _since(self, is_so: Callable[[], bool]) -> int:
        """Return the first of the kept checkpoints that can be read at which something is so; it is of the last."""
        first = self.step
        for step in (step for step in reversed(self.steps) if step < self.step):
            try:
                _, weights = checkpoints.averaged_weights(self._run, self._model, step)
            except InputError:  # damaged, or deleted by the training that goes on
                continue
            with self._with_weights(weights):
                if not is_so():
                    break
            first = step
        return first

    def _errors(self, some: data.ImageData, done) -> probes.Errors:
        return probes.errors_at(self._predict, *self._chosen(some), self._timesteps, self._seed, done)

    def _chosen(self, some: data.ImageData) -> tuple[np.ndarray, np.ndarray]:
        """Return the images x_0 on which losses are measured, and their labels."""
        order = np.random.default_rng(self._seed % 2**32).permutation(len(some.images))
        rows = np.sort(order[: self.num_images])
        labels = np.zeros(len(rows), np.int32) if some.labels is None else some.labels[rows]
        return probes.as_floats(some.images[rows]), labels.astype(np.int32)

    def _paint(self) -> np.ndarray:
        """Return pictures, of the classes as often as the data have them."""
        steps, labels = min(_STEPS, self._config.num_timesteps), None
        if self._config.num_classes and (known := self._source.labels) is not None:
            labels = np.sort(known)[np.linspace(0, len(known) - 1, _PICTURES).round().astype(int)]
        return np.asarray(self._model.generate(range(_PICTURES), _SAMPLER, steps, labels=labels, verbose=False))

    @contextlib.contextmanager
    def _with_weights(self, weights: list[np.ndarray]) -> Iterator[None]:
        """Give the network that generates other weights within the block."""
        network = self._model.ema_network
        own = network.get_weights()
        network.set_weights(weights)
        try:
            yield
        finally:
            network.set_weights(own)
