"""Construction of a model from a configuration, and of a trained model from a run."""

import math
import os

from kddpm.base import memory
from kddpm.base.errors import InputError
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.networks import levels
from kddpm.networks.unet import UNet
from kddpm.runs import snapshots, weights_files
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory


def build_model(config: TrainConfig, image_shape: tuple[int, int, int]) -> DiffusionModel:
    """Build the model of a configuration, with new weights.

    Raises:
        InputError: the network is too large for this machine's memory.
    """
    _check_memory(config, image_shape)
    network = UNet(
        image_shape,
        **config.architecture,
        out_channels=config.objective.out_channels(image_shape[-1]),
        dtype=config.precision,
    )
    return DiffusionModel(
        network,
        config.noise_schedule,
        prediction=config.prediction,
        weighting=config.weighting,
        variance=config.variance,
        timestep_sampling=config.timestep_sampling,
        label_dropout=config.label_dropout,
        seed=config.seed,
        ema_momentum=config.ema_momentum,
        clip_norm=config.clip_norm,
        accumulation=config.accumulation,
    )


def _parameters(config, image_shape):
    return levels.count_parameters(
        image_shape,
        config.width,
        config.multipliers,
        config.blocks_per_level,
        config.attention_resolutions,
        config.num_classes,
        config.objective.out_channels(image_shape[-1]),
    )


def _check_memory(config, image_shape):
    """Check that memory suffices for the weights, their averages and the forward pass of one picture.

    Raises:
        InputError: it does not.
    """
    pixels = math.prod(image_shape[:2])
    sides = levels.sides(image_shape[:2], len(config.multipliers))  # the last level always has attention
    shrunk = max([sides[-1], *config.attention_resolutions]) / sides[0]
    parameters = _parameters(config, image_shape)
    need = 4 * (2 * parameters + pixels * config.width + (pixels * shrunk**2) ** 2)
    if need > (total := memory.total()):
        raise InputError(
            "{width}, {multipliers}, {blocks_per_level}, {image_size} and {attention_resolutions} ask for a network of "
            f"{parameters:,} parameters, which takes {_gb(need)} or more",
            received=f"a machine of {_gb(total)}",
            width=...,
            multipliers=...,
            blocks_per_level=...,
            image_size=...,
            attention_resolutions=...,
        )


def _gb(size):
    return f"{size / 1e9:,.2f} GB"


def load_run(run_dir: str | os.PathLike, ema_length: float | None = None) -> DiffusionModel:
    """Load the model of a run with its averaged weights, ready to generate.

    Args:
        run_dir: directory of a run of `kddpm.training`.
        ema_length: sigma_rel of an average that is rebuilt from the run's snapshots, such as 0.1
            (`kddpm.runs.snapshots`); None = the average that training kept.

    Raises:
        InputError: no run there, no checkpoint yet, or weights that do not fit the configuration; snapshots that give
            no average of this length.
    """
    run = RunDirectory(run_dir)
    config, data = run.read()
    if not run.weights_path.exists():
        raise InputError(
            "run_dir", f"{run.path} has no weights yet: {run.weights_path.name} comes with the first checkpoint"
        )
    image_shape = tuple(data["image_shape"])
    weights_files.check_size(run.weights_path, _parameters(config, image_shape))
    model = build_model(config, image_shape)
    weights_files.load(model.ema_network, run.weights_path)
    if ema_length is not None:
        _, weights = snapshots.rebuilt(run, model, ema_length)
        model.ema_network.set_weights(weights)
    return model
