"""The Keras callbacks that make `DiffusionModel.fit` a run: metrics, sample grids, checkpoints, signals, progress."""

import importlib.util
import math
import signal
import sys
import threading
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from kddpm import plots
from kddpm.base import extras, progress
from kddpm.base.types import Logs
from kddpm.data import images
from kddpm.distribution import workers
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import snapshots
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory, writing

_GRID_PICTURES = 64
_STEPS_TO_A_STOP = 10  # several workers check this often whether one of them received a signal


class _StepCallback(keras.callbacks.Callback):
    """A callback that counts the steps of the run, not of this call of `fit`."""

    def __init__(self, start: int):
        super().__init__()
        self.step = start

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.after_step(logs)


class TensorBoard:
    """Writes a run's numbers and pictures for TensorBoard, if installed; the file is made at the first write."""

    def __init__(self, run):
        self.path = run.path / "tensorboard"
        self.is_wanted = run.writes and importlib.util.find_spec("tensorboard")
        self.writer = None

    def write(self, step: int, summary: Callable, values: dict) -> None:
        """Write {name: value} with a function of `tf.summary`."""
        if not self.is_wanted:
            return
        with writing(self.path, tf.errors.OpError):
            self.writer = self.writer or tf.summary.create_file_writer(str(self.path))
            with self.writer.as_default(step):
                for name, value in values.items():
                    summary(name, value)

    def close(self) -> None:
        """Write what is still buffered."""
        if self.writer:
            with writing(self.path, tf.errors.OpError):
                self.writer.close()


class Metrics(_StepCallback):
    """Writes a row of means every log_every steps, to metrics.csv and TensorBoard."""

    def __init__(self, board, run, config, start):
        super().__init__(start)
        self.board, self.run, self.config = board, run, config
        self.logs: Logs = {}  # of the last step

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Remember the running means of the unfinished row."""
        # `fit` resets the means when an epoch starts; those of a row begun before a restart must continue.
        self.unfinished = [(v, v.numpy()) for metric in self.model.metrics for v in metric.variables]

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Restore the running means."""
        for variable, value in self.unfinished:
            variable.assign(value)

    def after_step(self, logs: Logs) -> None:
        """Write a row if one is due."""
        self.logs = logs
        if self._is_due():
            self._write()

    def close(self) -> None:
        """Write the unfinished row if training ended among steps that were skipped: it says why."""
        if self.logs and not self._is_due() and int(self.model.skipped_in_a_row.numpy()):
            self._write()

    def _is_due(self):
        return self.step % self.config.log_every == 0 or self.step == self.config.steps

    def _write(self):
        row = {name: float(value) for name, value in self.logs.items()}
        if not self.model.loss_tracker.count.numpy():  # all steps were skipped
            row |= {"loss": math.nan, "gradient_norm": math.nan}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        self.model.reset_metrics()
        self.run.append_row({"step": self.step} | row)
        self.board.write(self.step, tf.summary.scalar, row)


class Snapshots(_StepCallback):
    """Moves the averages of `snapshots`, and writes them every snapshot_every steps and at the end.

    Steps that are skipped leave them as they are, and are not made up for. It comes before `Saver`, so that a
    checkpoint holds what its step did to them, and a run that goes on from there has its snapshot.
    """

    def __init__(self, averages, run, config, start):
        super().__init__(start)
        self.averages, self.run, self.config = averages, run, config

    def after_step(self, logs: Logs) -> None:
        """Take in the weights, and write a snapshot, where these are due."""
        if self.step % snapshots.EVERY == 0 and not int(self.model.skipped_in_a_row.numpy()):
            self.averages.update()
        if self.step % self.config.snapshot_every == 0 or self.step == self.config.steps:
            snapshots.save(self.run, self.averages, self.step)


class Samples(_StepCallback):
    """Paints a grid of the same seeds and the loss curve, every sample_every steps and at the end."""

    def __init__(self, board, run, config, start):
        super().__init__(start)
        self.board, self.run, self.config = board, run, config

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Paint the grid that a kill may have prevented."""
        paint_missing_grid(self.model, self.run, self.config, self.step)

    def after_step(self, logs: Logs) -> None:
        """Paint a grid if one is due."""
        if _grid_is_due(self.config, self.step):
            grid = _paint(self.model, self.run, self.config, self.step)
            self.board.write(self.step, tf.summary.image, {"samples": grid[np.newaxis]})


def _grid_is_due(config, step):
    return step > 0 and (step % config.sample_every == 0 or step == config.steps)


def paint_missing_grid(model: DiffusionModel, run: RunDirectory, config: TrainConfig, step: int) -> None:
    """Paint the grid of a step, and the loss curve, if a kill right after its checkpoint prevented them."""
    has_curve = run.loss_curve_path.exists() or extras.missing("plots") is not None
    missing = run.writes and not (run.grid_path(step).exists() and has_curve)
    if _grid_is_due(config, step) and workers.total(model.distribute_strategy, missing):
        _paint(model, run, config, step)


def _paint(model, run, config, step):
    """Write a grid of pictures and the loss curve; return the grid. All workers must call this."""
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
        draw_curve(run)
    return grid


def draw_curve(run: RunDirectory) -> None:
    """Draw the loss curve of all rows if matplotlib is installed; `training.train` says so if it is not."""
    if run.writes and extras.missing("plots") is None and (rows := run.rows()):
        with writing(run.loss_curve_path):
            plots.loss_curve(rows, run.loss_curve_path)


class Evaluation(_StepCallback):
    """Measures the pictures, every eval_every steps and at the end."""

    def __init__(self, monitor, board, progress, stopper, start):
        super().__init__(start)
        self.monitor, self.board, self.progress, self.stopper = monitor, board, progress, stopper

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Measure what a kill may have prevented."""
        self._tell(self.monitor.go_on(self.step))

    def after_step(self, logs: Logs) -> None:
        """Measure the pictures if that is due; where the run is to stop, it is done when the run goes on."""
        if self.monitor.is_due(self.step) and not self.stopper.received:
            self._tell(self.monitor.measure(self.step))

    def _tell(self, row):
        self.progress.note = self.monitor.last()
        if row is not None:
            numbers = {name: row[name] for name in ("frechet", "frechet_standard_error")}
            self.board.write(self.step, tf.summary.scalar, numbers)


class StopSignals(keras.callbacks.Callback):
    """Ends training after the current step on SIGTERM or Ctrl-C; a second signal ends it at once.

    Several workers exchange their signals every few steps, and end after the same step.
    """

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy
        self.received = None  # signal number, once all workers know that one received it
        self._mine = 0
        self._previous = {}

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Install the signal handlers, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        self._mine = number
        self.close()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Stop after this step if any worker received a signal."""
        is_single = workers.num_workers(self.strategy) == 1
        if (is_single or batch % _STEPS_TO_A_STOP == 0) and workers.total(self.strategy, self._mine):
            self.received = self._mine or signal.SIGTERM
            self.model.stop_training = True

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Saver(_StepCallback):
    """Saves a checkpoint every checkpoint_every steps, at the end and before leaving on a signal.

    Not while steps are skipped, since the cause is in the weights: a due checkpoint waits for the next step taken.
    """

    def __init__(self, checkpoints, config, start, stopper):
        super().__init__(start)
        self.checkpoints, self.config, self.stopper = checkpoints, config, stopper
        self.is_due = False

    def after_step(self, logs: Logs) -> None:
        """Save a checkpoint if one is due."""
        last = self.step == self.config.steps or self.stopper.received
        self.is_due |= last or self.step % self.config.checkpoint_every == 0
        if self.is_due and (last or not int(self.model.skipped_in_a_row.numpy())):
            self.model.check_not_lost(1)
            self.checkpoints.save(self.step, float(logs["loss"]))
            self.is_due = False
            if self.stopper.received:
                name = signal.Signals(self.stopper.received).name
                tqdm.write(f"{name}: saved step {self.step}; the same command goes on from there", file=sys.stderr)


class Progress(_StepCallback):
    """Shows steps done, loss, images/s and time left, and a note."""

    def __init__(self, config, start, verbose):
        super().__init__(start)
        self.config, self.verbose, self.note = config, verbose, ""

    def after_step(self, logs: Logs) -> None:
        """Update the bar, at most once per its `mininterval`."""
        if not self.verbose:
            return
        now = time.monotonic()
        if not hasattr(self, "bar"):  # starts after the first step, to keep its compilation out of the estimate
            self.bar = progress.bar(self.config.steps, None, "step", initial=self.step)
            self.shown_step, self.shown_time = self.step, now
            return
        if now - self.shown_time >= self.bar.mininterval:
            rate = (self.step - self.shown_step) * self.config.batch_size / (now - self.shown_time)
            shown = [f"loss {float(logs['loss']):.4f}", f"{rate:.0f} images/s", self.note]
            self.bar.set_postfix_str(", ".join(filter(None, shown)), refresh=False)
            self.bar.update(self.step - self.bar.n)
            self.shown_step, self.shown_time = self.step, now

    def close(self) -> None:
        """Update the bar a last time and close it."""
        if hasattr(self, "bar"):
            self.bar.update(self.step - self.bar.n)
            self.bar.close()


def warn(line: str) -> None:
    """Print a line on stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)
