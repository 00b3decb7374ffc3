"""`examine(run_dir)`: says whether a run is healthy, during it or after it; prints a table and writes it to the run.

    doctor.json    every figure with what is expected and its verdict, and the losses at some t
    doctor.png     the losses beside those of the best linear denoiser, and pictures beside real ones

`data_findings`, `findings` and `network_findings` judge the figures, `network_examination` and `probes` measure those
of the network. At the end of training `in_a_line` judges what needs no network.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import shlex
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from kddpm import data, plots
from kddpm.base import arguments, extras, progress
from kddpm.base.errors import InputError, named_as
from kddpm.base.files import expand
from kddpm.base.version import __version__
from kddpm.data import image_files
from kddpm.runs import build, checkpoints, data_findings, findings, probes
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory, check_classes
from kddpm.runs.findings import Course, Finding
from kddpm.runs.network_examination import NetworkExamination
from kddpm.runs.results import write_json
from kddpm.theory import linear_denoiser, parametrization, timesteps

_SHOWN = 25  # pictures in the figure


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
    others = _held_out(held_out, source, config, trained_on, reading, say) if held_out else None
    steps = checkpoints.saved_steps(run)  # a training beside this has come further while images were read
    of_network = None
    if others and not steps:
        say(f"Nothing is said of {others.source} before there is a checkpoint")
    if steps:
        model = build.build_model(config, tuple(trained_on["image_shape"]))
        of_network = NetworkExamination(run, model, config, source, others, num_images, seed, steps)
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
    flat = (np.ptp(pixels, axis=(1, 2)) <= data_findings.FLAT_RANGE).all(axis=-1)
    schedule, course = config.noise_schedule, Course.of(rows, config.warmup_steps)
    found = [
        data_findings.of_digest(source.digest == digest),
        data_findings.of_range(pixels),
        data_findings.of_flat_images(flat.mean()),
        data_findings.of_repeats(pixels),
        data_findings.of_variety(math.sqrt(x_0.var(axis=0).mean())),
        data_findings.of_kinds(x_0),
    ]
    if config.num_classes and source.labels is not None:
        found.append(data_findings.of_classes(np.bincount(source.labels, minlength=config.num_classes)))
    found += [findings.of_last_step(schedule, config), findings.of_first_step(schedule), findings.of_warm_up(config)]
    if course.step:
        found.append(findings.of_skipped_steps(course, config))
    found += findings.of_course(course, config, course.step >= config.steps)
    objective = config.objective
    if objective.weighting in ("simple", "min_snr") and course.is_long_enough:
        linear = linear_denoiser.losses(schedule, objective.prediction, probes.variances(config, x_0))
        is_log_normal = objective.timestep_sampling == "log_normal"
        shares = timesteps.log_normal_probabilities(schedule) if is_log_normal else None
        expected = float(np.average(parametrization.loss_weights(schedule, objective) * linear, weights=shares))
        found.append(findings.of_training_loss(course.quarters[-1], expected, config))
    return found


def _held_out(spec, source, config, trained_on, reading, say) -> data.ImageData:
    """Load the images that the run was not trained on.

    Raises:
        InputError: they are those of the run, or as in `_check`.
    """
    height, width, channels = trained_on["image_shape"]
    with named_as("held_out", "dataset"):
        others = data.load(spec, (height, width), channels, **reading)
    if others.changes:
        say(f"Images of {others.source}: {others.changes}")
    if others.digest in (source.digest, trained_on["digest"]):
        raise InputError("held_out", "must be other images than those of the run", others.source)
    _check("held_out", others, config, trained_on)
    return others


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
