"""Checks of the arguments of `DiffusionModel` and of its `compile`, made before anything is built."""

import warnings

import keras

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.theory import schedules

LARGEST_LAST_ALPHA_BAR = 0.01  # above it x_T is visibly not noise


def check_numbers(
    ema_momentum: float, label_dropout: float, seed: int, clip_norm: float | None, accumulation: int
) -> None:
    """Check that the numbers are in their ranges.

    Raises:
        InputError: one of them is not.
    """
    for name, share in (("ema_momentum", ema_momentum), ("label_dropout", label_dropout)):
        if not 0 <= arguments.number(name, share) < 1:
            raise InputError(name, "must lie in [0, 1)", share)
    arguments.int32("seed", [seed])
    arguments.count("accumulation", accumulation)
    if clip_norm is not None and not arguments.number("clip_norm", clip_norm) > 0:
        raise InputError("clip_norm", "must be positive, or None", clip_norm)


def as_schedule(schedule: schedules.NoiseSchedule | str | None) -> schedules.NoiseSchedule:
    """Return a schedule, given itself or by its name; None = linear.

    Raises:
        InputError: anything else.
    """
    if isinstance(schedule, schedules.NoiseSchedule):
        return schedule
    if schedule is None or isinstance(schedule, str):
        return schedules.by_name(schedule or "linear")
    raise InputError(
        "schedule", "must be a NoiseSchedule, such as kddpm.schedules.cosine(1000), or a name", repr(schedule)
    )


def warn_of_a_rest(schedule: schedules.NoiseSchedule) -> None:
    """Warn if x_T still shows the image at the end of the schedule."""
    if schedule.alpha_bars[-1] > LARGEST_LAST_ALPHA_BAR:
        warnings.warn(
            f"The schedule ends at alpha_bar={schedule.alpha_bars[-1]:.2g}: x_T still shows the image, and "
            "sampling, which starts from pure noise, will not match. Raise its betas with fewer steps",
            stacklevel=3,
        )


def check_compile_arguments(network: keras.Model, optimizer: object, options: dict) -> None:
    """Check that a `DiffusionModel` supports these arguments of `compile`.

    Args:
        network: the network that is trained.
        optimizer: as `keras.optimizers.get` takes it.
        options: the other arguments of Keras's `compile`.

    Raises:
        InputError: a loss or metrics, which the model defines itself; float16, whose range is too small for gradients;
            no optimizer, or one that clips or accumulates gradients, averages weights or scales the loss.
    """
    for name in ("loss", "loss_weights"):
        if (value := options.get(name)) is not None:
            raise InputError(name, "follows from the model's `prediction` and `weighting`", f"{name}={value!r}")
    if any(layer.compute_dtype == "float16" for layer in network._flatten_layers()):
        raise InputError("network", "must compute in float32 or bfloat16", "the dtype policy mixed_float16")
    if options.get("metrics") or options.get("weighted_metrics"):
        raise InputError("metrics", "are the loss and the gradient norm and cannot be chosen")
    if optimizer is None:
        raise InputError("optimizer", "must be a Keras optimizer or the name of one", "None")
    _check_optimizer(keras.optimizers.get(optimizer))


def _check_optimizer(optimizer) -> None:
    """Check that an optimizer does nothing that the model does itself.

    Raises:
        InputError: it clips, accumulates, averages or scales; the message says what to use instead.
    """
    for name, instead in (
        ("gradient_accumulation_steps", "`accumulation` of the model"),
        ("use_ema", "`ema_momentum` of the model"),
        ("clipnorm", "`clip_norm` of the model"),
        ("global_clipnorm", "`clip_norm` of the model"),
        ("clipvalue", "`clip_norm` of the model"),
        ("loss_scale_factor", "float16, which is not supported"),
    ):
        if value := getattr(optimizer, name, None):
            raise InputError("optimizer", f"must leave {name} to {instead}", f"{name}={value}")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise InputError("optimizer", "must not scale losses, which float16 alone needs", "LossScaleOptimizer")


def compiled_weights(network: keras.Model, known: frozenset) -> list:
    """Return the trainable weights of a network.

    Args:
        network: the network that is trained.
        known: ids of those that it had when the model was compiled.

    Raises:
        InputError: it has others now.
    """
    weights = network.trainable_variables
    if new := [weight.path for weight in weights if id(weight) not in known]:
        raise InputError(
            "network", "has other trainable weights than when the model was compiled: call `compile` again", new[0]
        )
    return weights
