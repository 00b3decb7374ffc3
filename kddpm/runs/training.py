"""`train(config, run_dir)`: a whole training run, on top of `DiffusionModel.fit`.

The same call resumes where the last one stopped: the weights and the optimizer come from the newest checkpoint, and the
data and the random draws of step k are functions of (seed, k).
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kddpm import data
from kddpm.base import extras, settings
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import expand
from kddpm.data import image_files
from kddpm.distribution import workers
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import doctor, fingerprint, snapshots, weights_files
from kddpm.runs.build import build_model
from kddpm.runs.callbacks import (
    Evaluation,
    Metrics,
    Progress,
    Samples,
    Saver,
    Snapshots,
    StopSignals,
    TensorBoard,
    draw_curve,
    paint_missing_grid,
    warn,
)
from kddpm.runs.checkpoints import Checkpoints
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory, writing
from kddpm.runs.monitoring import Monitor


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike,
    *,
    strategy: tf.distribute.Strategy | None = None,
    tfds_data_dir: str | None = None,
    cache_dir: str | None = None,
    skip_bad_images: bool = False,
    override_resume: Collection[str] = (),
    callbacks: list[keras.callbacks.Callback] | None = None,
    verbose: bool = True,
) -> DiffusionModel:
    """Train, or resume training, until `config.steps` steps have been taken.

    Args:
        config: the configuration; it is compared with that of a run already in `run_dir`.
        run_dir: directory of all files, see `kddpm.runs.directory`; with several workers, on a disk that they share.
        strategy: the devices that share every batch, see `kddpm.distribution.strategies`; None = the strategy of the
            current scope.
        tfds_data_dir: where TensorFlow Datasets keeps its data; None = its default.
        cache_dir: folder for decoded images that do not fit in memory; None = the run's data/.
        skip_bad_images: leave unreadable images out instead of raising an error that lists them.
        override_resume: fields in which the existing run may differ from `config`; with "dataset" the images may
            differ too.
        callbacks: Keras callbacks in addition to the run's own.
        verbose: whether to print what is happening and show a progress bar.

    Returns:
        The trained model.

    Raises:
        InputError: the configuration, data or directory cannot be used; raised before any training, with nothing
            overwritten. Later, only if the disk fails or too many steps are skipped.
        SystemExit: after SIGTERM or Ctrl-C, once a checkpoint has been saved.
        WorkerLostError: another worker ended, or cannot be reached. A program should then leave by `os._exit`: at a
            normal exit TensorFlow waits for the lost worker.
    """
    strategy = strategy or tf.distribute.get_strategy()
    run = RunDirectory(run_dir, writes=workers.is_chief(strategy))
    verbose = verbose and run.writes

    def say(line):
        if verbose:
            print(line, flush=True)

    options: dict[str, Any] = {"tfds_data_dir": tfds_data_dir, "cache_dir": cache_dir or run.data_path}
    options |= {"skip_bad_images": skip_bad_images, "progress": verbose}
    with workers.using(strategy), contextlib.ExitStack() as stack:
        workers.check_same(strategy, "configuration", f"{config} {sorted(override_resume)}")
        with workers.all_or_none(strategy):
            run.check(config, override_resume, cache_dir)
            _check_batch(config, strategy.num_replicas_in_sync)
        say(f"Reading {image_files.printable(config.dataset)} ...")
        source = _read(config, run, strategy, options)
        with workers.all_or_none(strategy):
            model = new_model(config, source.images.shape[1:])
            averages = snapshots.Averages(model.network) if config.snapshot_every else None
            if "dataset" not in override_resume:
                run.check_same_data(_describe(source))
            monitor = None
            if config.eval_every:  # its network comes after the model's, whose weights are drawn as without it
                cache = pathlib.Path(expand(options["cache_dir"]))
                monitor = Monitor(run, model, config, source, cache, verbose)
            stack.enter_context(run.locked(_needed_bytes(model, averages, config)))
        checkpoints, start = _resume(model, averages, run, config, source)
        shape = "x".join(str(n) for n in source.images.shape[1:])
        say(f"{len(source.images)} images of {shape}, {model.network.count_params():,} parameters, {run.path}")
        if start >= config.steps:
            more = "; more steps would go on from here" if config.learning_rate_decay == "none" else ""
            say(f"Already trained for {start} of {config.steps} steps{more}")
            paint_missing_grid(model, run, config, start)
            if monitor:
                monitor.go_on(start)
            return model
        if config.precision == "mixed_bfloat16" and not start and not _accelerators() and settings.lacks_bfloat16():
            say("This processor has no bfloat16 arithmetic: --precision=float32 would train several times as fast")
        if (need := extras.missing("plots")) is not None:
            say(f"There will be no loss curve, as it {need}")
        say(f"{f'Going on after step {start}; c' if start else 'C'}ompiling the training step ...")
        kept = [Snapshots(averages, run, config, start)] if averages else []  # before the saver of `_fit`
        _fit(model, source, run, checkpoints, config, start, [*(callbacks or []), *kept], monitor, verbose)
    if verbose:
        try:
            given = {"tfds_data_dir": tfds_data_dir, "cache_dir": cache_dir, "skip_bad_images": skip_bad_images}
            say(doctor.in_a_line(run, config, source, given))
        except Exception as error:  # the run is over and saved: what judges it must not fail it
            warn(f"Nothing can be said of the run's health: {first_line(error)}")
    return model


def _read(config, run, strategy, options):
    """Load the images. If they need a cache, the chief makes it first, and the other workers read it."""
    for turn in (True, False):
        with workers.all_or_none(strategy):
            if run.writes is turn:
                source = data.load(config.dataset, config.image_size, config.channels, **options)
                _check_data(config, source)
    return source


def new_model(config: TrainConfig, image_shape: tuple[int, int, int]) -> DiffusionModel:
    """Return a new compiled model, after checking the settings of its sample grids.

    Raises:
        InputError: the settings do not fit the model, or as in `build.build_model`.
    """
    keras.utils.set_random_seed(config.seed % 2**32)  # for the new weights
    model = build_model(config, image_shape)
    model.compile(keras.optimizers.Adam(_learning_rate(config)), jit_compile=config.jit_compile)
    model.denoiser.steps(config.sampler, config.sampling_steps)  # raises now, so that no sample grid fails later
    model.denoiser.check_guidance(config.guidance_scale)
    return model


def _resume(model, averages, run, config, source):
    """Restore the newest checkpoint; return the checkpoints and its step. All checks precede the first write."""
    strategy = model.distribute_strategy
    with workers.all_or_none(strategy):
        circumstances = fingerprint.of_this_process(config.jit_compile, strategy.num_replicas_in_sync)
        others = averages.variables if averages else []
        checkpoints = Checkpoints(run, model, circumstances, warn if run.writes else lambda line: None, others)
        start = checkpoints.restore()
        run.rows()  # check that they can be read
    workers.check_same(strategy, "data and checkpoint, on a disk that they share", f"{source.digest} {start}")
    with workers.all_or_none(strategy):
        run.write(config, _describe(source))
        run.forget_rows_after(start)
        snapshots.forget_after(run, start)
        if start and run.writes and not run.weights_path.exists():
            with writing(run.weights_path, RuntimeError):  # from h5py, on a full disk
                weights_files.save(model.ema_network, run.weights_path)
    return checkpoints, start


def _fit(model, source, run, checkpoints, config, start, callbacks, monitor, verbose):
    """Call `DiffusionModel.fit` from step `start` on, with the callbacks of a run."""
    batches = data.batches(
        source,
        config.batch_size,
        seed=config.seed,
        start=start,
        stop=config.steps,
        horizontal_flip=config.horizontal_flip,
        with_labels=config.num_classes is not None,
    )
    stopper = StopSignals(model.distribute_strategy)
    board, shown = TensorBoard(run), Progress(config, start, verbose)
    metrics = Metrics(board, run, config, start)
    own = [
        metrics,
        stopper,
        Saver(checkpoints, config, start, stopper),  # before the pictures: if they fail, the work is saved
        Samples(board, run, config, start),
        *([Evaluation(monitor, board, shown, stopper, start)] if monitor else []),
        shown,
    ]
    try:
        model.fit(batches, steps_per_epoch=config.steps - start, verbose=0, callbacks=[*callbacks, *own])
    except InputError:
        with contextlib.suppress(InputError):  # of the disk: the error that ended training must not be replaced
            metrics.close()
        raise
    finally:  # Keras does not call `on_train_end` after an exception
        stopper.close()
        shown.close()
        for finish in (board.close, lambda: draw_curve(run)):
            try:
                finish()
            except InputError as error:  # the exception that ended training must not be replaced
                warn(str(error))
    if stopper.received:
        raise SystemExit(128 + stopper.received)


def _learning_rate(config):
    """Return the learning rate: it rises linearly from 0 over the warm-up; then Ho et al.'s is constant."""
    schedules, rate, warmup = keras.optimizers.schedules, config.learning_rate, config.warmup_steps
    if config.learning_rate_decay == "cosine":
        start = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
        return schedules.CosineDecay(0.0 if warmup else rate, max(1, config.steps - warmup), **start)
    return schedules.PolynomialDecay(0.0, warmup, rate) if warmup else rate


def _describe(source: data.ImageData) -> dict:
    return {
        "source": source.source,
        "digest": source.digest,
        "images": len(source.images),
        "image_shape": list(source.images.shape[1:]),
        "class_names": list(source.class_names),
    }


def _needed_bytes(model, averages, config) -> int:
    """Return the size of all snapshots, and five checkpoints: the last three, the best, and one being written."""
    checkpoint = sum(4 * int(np.prod(v.shape)) for v in [*model.variables, *model.optimizer.variables])
    if averages is None:
        return 5 * checkpoint
    snapshot = snapshots.bytes_of(averages)
    return 5 * (checkpoint + snapshot) + math.ceil(config.steps / config.snapshot_every) * snapshot


def _accelerators():
    """Return the devices other than processors."""
    return [device for device in tf.config.list_physical_devices() if device.device_type != "CPU"]


def _check_batch(config, replicas):
    if config.batch_size % (replicas * config.accumulation):
        parts = ", each of which takes {accumulation} parts" if config.accumulation > 1 else ""
        raise InputError(
            "batch_size",
            f"must be divisible by the {replicas} replicas of {{strategy}}{parts}",
            config.batch_size,
            strategy=...,
            accumulation=config.accumulation,
        )


def _check_data(config, source):
    if config.batch_size > len(source.images):
        raise InputError(
            "batch_size",
            "must be at most the number of images",
            f"{config.batch_size}, and {len(source.images)} images",
        )
    if config.num_classes is None:
        return
    if source.labels is None:
        raise InputError(
            "num_classes",
            "must be none for images without labels",
            f"{config.num_classes}, and {{dataset}} {config.dataset} has no labels",
            dataset=...,
        )
    if source.labels.min() < 0 or source.labels.max() >= config.num_classes:
        raise InputError(
            f"{{num_classes}} needs labels in 0 .. {config.num_classes - 1}",
            received=f"from {source.labels.min()} to {source.labels.max()} in {config.dataset}",
            num_classes=config.num_classes,
        )
