"""`train(config, run_dir)`: the whole of a training run, on top of `DiffusionModel.fit`.

The same call goes on where the last one stopped: the weights and the optimizer come from the newest checkpoint, and the
data and the random draws of step k are functions of (seed, k).
"""

import contextlib
import importlib.util
import math
import os
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Collection

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from kddpm import data, fingerprint, generation, image_files, images, plots, presets, progress, strategies
from kddpm.checkpoints import Checkpoints, build_model
from kddpm.errors import InputError
from kddpm.model import DiffusionModel
from kddpm.runs import RunDirectory, writing

_GRID_PICTURES = 64
_STEPS_TO_A_STOP = 10  # of several workers, after a signal to one of them


def train(
    config: presets.TrainConfig,
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
    """Train, or go on training, until `config.steps` steps have been taken.

    Args:
        config: the run; what it says is compared with a run that is there already.
        run_dir: where everything goes, see `kddpm.runs`; with several workers, on a disk that all of them share.
        strategy: the devices that share every batch, see `kddpm.strategies`; None = the one in whose scope this is.
        tfds_data_dir: where TensorFlow Datasets keeps its data; None = its default.
        cache_dir: for decoded images that do not fit in memory; None = the run's data/.
        skip_bad_images: leave unreadable images out instead of ending with their list.
        override_resume: fields of the configuration in which the run that is there may differ from `config`; "dataset"
            for other images too.
        callbacks: Keras callbacks beside the run's own.
        verbose: whether to say what is happening and show a progress bar.

    Returns:
        The trained model.

    Raises:
        InputError: anything that cannot be trained on; before any training and with nothing overwritten.
        SystemExit: after SIGTERM or Ctrl-C, once a checkpoint has been saved.
        WorkerLostError: another worker ended, or cannot be reached. A program should then leave by `os._exit`: at an
            ordinary end TensorFlow waits for the lost one.
    """
    strategy = strategy or tf.distribute.get_strategy()
    run = RunDirectory(run_dir, writes=strategies.is_chief(strategy))
    verbose = verbose and run.writes

    def say(line):
        if verbose:
            print(line, flush=True)

    options = {"tfds_data_dir": tfds_data_dir, "cache_dir": cache_dir or run.data_path}
    options |= {"skip_bad_images": skip_bad_images, "progress": verbose}
    with strategies.using(strategy), contextlib.ExitStack() as stack:
        strategies.check_alike(strategy, "configuration", f"{config} {sorted(override_resume)}")
        with strategies.all_or_none(strategy):
            run.check(config, override_resume, cache_dir)
            _check_batch(config, strategy.num_replicas_in_sync)
        say(f"Reading {image_files.printable(config.dataset)} ...")
        source = _read(config, run, strategy, options)
        with strategies.all_or_none(strategy):
            model = _new_model(config, source)
            if "dataset" not in override_resume:
                run.check_same_data(_describe(source))
            stack.enter_context(run.alone(_needed_bytes(model)))
        checkpoints, start = _resume(model, run, config, source)
        shape = "x".join(str(n) for n in source.images.shape[1:])
        say(f"{len(source.images)} images of {shape}, {model.network.count_params():,} parameters, {run.path}")
        if start >= config.steps:
            say(f"Already trained for {start} of {config.steps} steps; raise --steps to go on")
            _make_up(model, run, config, start)
            return model
        say(f"{f'Going on after step {start}; c' if start else 'C'}ompiling the training step ...")
        _fit(model, source, run, checkpoints, config, start, callbacks or [], verbose)
    return model


def _read(config, run, strategy, options):
    """The images. Where they need a cache, the worker that writes makes it, and the others find it."""
    for turn in (True, False):
        with strategies.all_or_none(strategy):
            if run.writes is turn:
                source = data.load(config.dataset, config.image_size, config.channels, **options)
                _check_data(config, source)
    return source


def _new_model(config, source):
    """A compiled model that can do all that the run will ask of it."""
    keras.utils.set_random_seed(config.seed % 2**32)  # of the new weights
    model = build_model(config, source.images.shape[1:])
    model.compile(keras.optimizers.Adam(_learning_rate(config)), jit_compile=config.jit_compile)
    generation.step_table(model, config.sampler, config.sampling_steps)  # so that no sample grid is refused later
    generation.check_guidance(model, config.guidance_scale)
    return model


def _resume(model, run, config, source):
    """The run's checkpoints, and the step of the one that is now in the model; refusals come before the first write."""
    strategy = model.distribute_strategy
    with strategies.all_or_none(strategy):
        circumstances = fingerprint.of_this_process(config.jit_compile, strategy.num_replicas_in_sync)
        checkpoints = Checkpoints(run, model, circumstances, _warn if run.writes else lambda line: None)
        start = checkpoints.restore()
        run.rows()  # whether they can be read
    strategies.check_alike(strategy, "data and checkpoint, on a disk that they share", f"{source.digest} {start}")
    with strategies.all_or_none(strategy):
        run.write(config, _describe(source))
        run.forget_rows_after(start)
    return checkpoints, start


def _fit(model, source, run, checkpoints, config, start, callbacks, verbose):
    """`DiffusionModel.fit` from step `start` on, with the callbacks that make it a run."""
    batches = data.batches(
        source,
        config.batch_size,
        seed=config.seed,
        start=start,
        stop=config.steps,
        horizontal_flip=config.horizontal_flip,
        with_labels=config.num_classes is not None,
    )
    stopper = _StopSignals(model.distribute_strategy)
    board, shown = _TensorBoard(run), _Progress(config, start, verbose)
    own = [
        _Metrics(board, run, config, start),
        stopper,
        _Saver(checkpoints, config, start, stopper),  # before the pictures: whatever becomes of them, the work is safe
        _Samples(board, run, config, start),
        shown,
    ]
    try:
        model.fit(batches, steps_per_epoch=config.steps - start, verbose=0, callbacks=[*callbacks, *own])
    finally:  # `on_train_end` is not called when something is raised
        stopper.close()
        shown.close()
        for finish in (board.close, lambda: _draw_curve(run)):
            try:
                finish()
            except InputError as error:  # whatever ends training is to be told in its place
                _warn(str(error))
    if stopper.received:
        raise SystemExit(128 + stopper.received)


class _StepCallback(keras.callbacks.Callback):
    """A callback that counts steps of the run, not of this call."""

    def __init__(self, start: int):
        super().__init__()
        self.step = start

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.after_step(logs)


class _TensorBoard:
    """The numbers and pictures of a run for TensorBoard, where it is installed; its files begin with the first."""

    def __init__(self, run):
        self.path = run.path / "tensorboard"
        self.is_wanted = run.writes and importlib.util.find_spec("tensorboard")
        self.writer = None

    def write(self, step: int, summary: Callable, values: dict) -> None:
        """{name: value} by a function of `tf.summary`."""
        if not self.is_wanted:
            return
        with writing(self.path, tf.errors.OpError):
            self.writer = self.writer or tf.summary.create_file_writer(str(self.path))
            with self.writer.as_default(step):
                for name, value in values.items():
                    summary(name, value)

    def close(self):
        """Write what is still in memory."""
        if self.writer:
            with writing(self.path, tf.errors.OpError):
                self.writer.close()


class _Metrics(_StepCallback):
    """A row of means every log_every steps, in metrics.csv and for TensorBoard."""

    def __init__(self, board, run, config, start):
        super().__init__(start)
        self.board, self.run, self.config = board, run, config

    def on_train_begin(self, logs=None):
        # `fit` starts its epoch by resetting the means; those of a row begun before a restart go on instead.
        self.unfinished = [(v, v.numpy()) for metric in self.model.metrics for v in metric.variables]

    def on_epoch_begin(self, epoch, logs=None):
        for variable, value in self.unfinished:
            variable.assign(value)

    def after_step(self, logs):
        if self.step % self.config.log_every and self.step != self.config.steps:
            return
        row = {name: float(value) for name, value in logs.items()}
        if not self.model.loss_tracker.count.numpy():  # all were skipped
            row |= {"loss": math.nan, "gradient_norm": math.nan}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        self.model.reset_metrics()
        self.run.append_row({"step": self.step} | row)
        self.board.write(self.step, tf.summary.scalar, row)


class _Samples(_StepCallback):
    """A grid of pictures, always of the same seeds, every sample_every steps and at the end; the loss curve with it."""

    def __init__(self, board, run, config, start):
        super().__init__(start)
        self.board, self.run, self.config = board, run, config

    def on_train_begin(self, logs=None):
        _make_up(self.model, self.run, self.config, self.step)

    def after_step(self, logs):
        if _grid_is_due(self.config, self.step):
            grid = _paint(self.model, self.run, self.config, self.step)
            self.board.write(self.step, tf.summary.image, {"samples": grid[np.newaxis]})


def _grid_is_due(config, step):
    return step > 0 and (step % config.sample_every == 0 or step == config.steps)


def _make_up(model, run, config, step):
    """Paint what a kill right after the checkpoint of a step left out."""
    missing = run.writes and not (run.grid_path(step).exists() and run.loss_curve_path.exists())
    if _grid_is_due(config, step) and strategies.total(model.distribute_strategy, missing):
        _paint(model, run, config, step)


def _paint(model, run, config, step):
    """Write a grid of pictures, and the loss curve; returns the grid. All workers take part."""
    pictures = model.generate(
        range(_GRID_PICTURES),
        config.sampler,
        config.sampling_steps,
        guidance_scale=config.guidance_scale,
        verbose=False,
    )
    grid = images.grid(pictures)
    if run.writes:
        with writing(run.grid_path(step)):
            images.save_png(run.grid_path(step), grid)
        _draw_curve(run)
    return grid


def _draw_curve(run):
    """The curve of all rows."""
    if run.writes and (rows := run.rows()):
        with writing(run.loss_curve_path):
            plots.loss_curve(rows, run.loss_curve_path)


class _StopSignals(keras.callbacks.Callback):
    """SIGTERM and Ctrl-C end training after the step in hand; the second one ends it at once.

    Several workers ask each other every few steps, and end after the same one.
    """

    received = None  # by any worker, and known to all
    previous: typing.ClassVar[dict] = {}

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy
        self.mine = 0

    def on_train_begin(self, logs=None):
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        self.mine = number
        self.close()

    def on_train_batch_end(self, batch, logs=None):
        alone = strategies.num_workers(self.strategy) == 1
        if (alone or batch % _STEPS_TO_A_STOP == 0) and strategies.total(self.strategy, self.mine):
            self.received = self.mine or signal.SIGTERM
            self.model.stop_training = True

    def close(self):
        """Give the signals back to whom they belonged."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class _Saver(_StepCallback):
    """A checkpoint every checkpoint_every steps, at the end and before leaving on a signal.

    Not while steps are skipped: what led there is in the weights. It waits for the next one that is taken.
    """

    def __init__(self, checkpoints, config, start, stopper):
        super().__init__(start)
        self.checkpoints, self.config, self.stopper = checkpoints, config, stopper
        self.is_due = False

    def after_step(self, logs):
        last = self.step == self.config.steps or self.stopper.received
        self.is_due |= last or self.step % self.config.checkpoint_every == 0
        if self.is_due and (last or not int(self.model.skipped_in_a_row.numpy())):
            self.model.check_not_lost(1)
            self.checkpoints.save(self.step, float(logs["loss"]))
            self.is_due = False
            if self.stopper.received:
                name = signal.Signals(self.stopper.received).name
                tqdm.write(f"{name}: saved step {self.step}; the same command goes on from there", file=sys.stderr)


class _Progress(_StepCallback):
    """Steps done, loss, images/s and time left."""

    def __init__(self, config, start, verbose):
        super().__init__(start)
        self.config, self.verbose = config, verbose

    def after_step(self, logs):
        if not self.verbose:
            return
        now = time.monotonic()
        if not hasattr(self, "bar"):  # after the first step, so that its compilation is not in the estimate
            self.bar = progress.bar(self.config.steps, None, "step", initial=self.step)
            self.shown_step, self.shown_time = self.step, now
            return
        if now - self.shown_time >= self.bar.mininterval:
            rate = (self.step - self.shown_step) * self.config.batch_size / (now - self.shown_time)
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.4f}, {rate:.0f} images/s", refresh=False)
            self.bar.update(self.step - self.bar.n)
            self.shown_step, self.shown_time = self.step, now

    def close(self):
        """Leave the bar as it stands."""
        if hasattr(self, "bar"):
            self.bar.update(self.step - self.bar.n)
            self.bar.close()


def _warn(line):
    tqdm.write(line, file=sys.stderr)


def _learning_rate(config):
    """Rises linearly from 0 over the warm-up, then stays; Ho et al.'s."""
    if not config.warmup_steps:
        return config.learning_rate
    return keras.optimizers.schedules.PolynomialDecay(0.0, config.warmup_steps, config.learning_rate)


def _describe(source: data.ImageData) -> dict:
    return {
        "source": source.source,
        "digest": source.digest,
        "images": len(source.images),
        "image_shape": list(source.images.shape[1:]),
        "class_names": list(source.class_names),
    }


def _needed_bytes(model) -> int:
    """Five checkpoints (three are kept, and the best, and one is being written) of all variables."""
    return 5 * sum(4 * int(np.prod(v.shape)) for v in [*model.variables, *model.optimizer.variables])


def _check_batch(config, replicas):
    if config.batch_size % (replicas * config.accumulation):
        parts = f", each of which takes --accumulation={config.accumulation} parts" if config.accumulation > 1 else ""
        raise InputError(
            f"--batch_size must be divisible by the {replicas} replicas of --strategy{parts}. "
            f"Received: {config.batch_size}"
        )


def _check_data(config, source):
    if config.batch_size > len(source.images):
        raise InputError(
            f"--batch_size must be at most the number of images. "
            f"Received: batch_size={config.batch_size}, {len(source.images)} images"
        )
    if config.num_classes is None:
        return
    if source.labels is None:
        raise InputError(f"--num_classes needs labels, and --dataset {config.dataset} has none")
    if source.labels.min() < 0 or source.labels.max() >= config.num_classes:
        raise InputError(
            f"--num_classes={config.num_classes} needs labels in 0 .. {config.num_classes - 1}. "
            f"Received: from {source.labels.min()} to {source.labels.max()} in {config.dataset}"
        )
