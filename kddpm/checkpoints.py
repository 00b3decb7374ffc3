"""Checkpoints of a run, and models from runs."""

import os

import tensorflow as tf

from kddpm import presets, schedules
from kddpm.errors import InputError
from kddpm.files import replacing
from kddpm.model import DiffusionModel
from kddpm.runs import RunDirectory
from kddpm.unet import UNet

_CHECKPOINTS_KEPT = 3


class Checkpoints:
    """Everything that training needs to go on: both sets of weights, the optimizer, the step, the running means.

    Args:
        run: the run directory.
        model: a compiled `DiffusionModel`.
    """

    def __init__(self, run: RunDirectory, model: DiffusionModel):
        self._run = run
        self._model = model
        # One flat list: of what Keras keeps in lists and metrics, TensorFlow finds nothing by itself, and says nothing.
        means = [variable for metric in model.metrics for variable in metric.variables]
        self._checkpoint = tf.train.Checkpoint(variables=[*model.variables, *means, *model.optimizer.variables])
        self._manager = tf.train.CheckpointManager(self._checkpoint, run.checkpoints_path, _CHECKPOINTS_KEPT)

    def restore(self) -> int:
        """Load the newest checkpoint into the model; returns its step, 0 where there is none.

        Raises:
            InputError: a checkpoint that is damaged, or that belongs to another model.
        """
        newest = self._manager.latest_checkpoint
        if newest is None:
            return 0
        try:
            self._checkpoint.restore(newest).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"The checkpoint {newest} cannot be read: {reason}") from None
        return int(self._model.step.numpy())

    def save(self, step: int) -> None:
        """Write a checkpoint and, once it is safe, the averaged weights.

        Raises:
            InputError: a checkpoint that cannot be written, on a full disk for one; earlier ones are untouched.
        """
        try:
            self._manager.save(checkpoint_number=step)
            with replacing(self._run.weights_path) as beside:
                self._model.ema_network.save_weights(beside)
        except (tf.errors.OpError, OSError, RuntimeError) as error:  # RuntimeError: h5py's, of a disk that is full
            reason = str(error).strip().splitlines()[0]
            text = f"The checkpoint of step {step} cannot be written, earlier ones are whole: {reason}"
            raise InputError(text) from None


def build_model(config: presets.TrainConfig, image_shape: tuple[int, int, int]) -> DiffusionModel:
    """The model that a configuration describes, with new weights."""
    network = UNet(
        image_shape,
        width=config.width,
        multipliers=config.multipliers,
        blocks_per_level=config.blocks_per_level,
        attention_resolutions=config.attention_resolutions,
        dropout=config.dropout,
        num_classes=config.num_classes,
        out_channels=image_shape[-1] * (2 if config.variance == "learned" else 1),
        dtype=config.precision,
    )
    schedule = schedules.by_name(config.schedule, config.num_timesteps)
    if config.zero_terminal_snr:
        schedule = schedules.zero_terminal_snr(schedule)
    return DiffusionModel(
        network,
        schedule,
        prediction=config.prediction,
        weighting=config.weighting,
        variance=config.variance,
        timestep_sampling=config.timestep_sampling,
        label_dropout=config.label_dropout,
        seed=config.seed,
        ema_momentum=config.ema_momentum,
        clip_norm=config.clip_norm,
    )


def load_run(run_dir: str | os.PathLike) -> DiffusionModel:
    """The model of a run with its averaged weights, ready to generate.

    Raises:
        InputError: no run there, no checkpoint yet, or weights that do not fit the configuration.
    """
    run = RunDirectory(run_dir)
    config, data = run.read()
    if not run.weights_path.exists():
        raise InputError(
            f"--run_dir {run.path} has no weights yet: {run.weights_path.name} comes with the first checkpoint"
        )
    model = build_model(config, tuple(data["image_shape"]))
    try:
        model.ema_network.load_weights(run.weights_path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{run.weights_path} cannot be read, or does not fit config.json: {reason}") from None
    return model
