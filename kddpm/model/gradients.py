"""Gradients of a batch over micro-batches and replicas, and the optimizer step with them, which may be skipped.

Each replica sees its part of the global batch, and Keras's optimizers sum the gradients of all replicas.
"""

import warnings
from collections.abc import Callable

import keras
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.base.types import Tensor


def loss_and_gradients(
    loss_of: Callable, weights: list, arrays: list, accumulation: int = 1, at_once: int = 1
) -> tuple[Tensor, Tensor, list, list[Tensor]]:
    """Return the loss of a batch and its gradients, computed in micro-batches and in parts of these.

    Args:
        loss_of: (*arrays) -> the mean loss and the loss of each image (B,).
        weights: variables to differentiate by.
        arrays: tensors (B, ...), or None, which is passed on.
        accumulation: number of micro-batches, all of the same size, one after the other.
        at_once: parts of each of them, computed at the same time.

    Returns:
        The mean loss, the loss of each image (B,), the weights on which it depends, and its gradients by them.

    Raises:
        InputError: the batch has no static size, or is not divisible by `accumulation`; the loss depends on no weight.
    """
    parts = accumulation * at_once
    without: set[int] = set()  # indices of weights, known once the loss has been traced

    def of_part(arrays):
        with tf.GradientTape() as tape:
            loss, losses = loss_of(*arrays)
            loss /= parts
        gradients = tape.gradient(loss, weights)
        without.update(index for index, gradient in enumerate(gradients) if gradient is None)
        # The label embedding has sparse gradients with repeated rows, which must be summed before a norm is taken.
        return (
            loss,
            losses,
            [
                tf.zeros(weight.shape, weight.dtype) if gradient is None else tf.convert_to_tensor(gradient)
                for weight, gradient in zip(weights, gradients, strict=True)
            ],
        )

    loss, losses, gradients = of_part(arrays) if parts == 1 else _in_parts(of_part, weights, arrays, parts, at_once)
    _warn_of_untrained(weights, without)
    kept = [index for index in range(len(weights)) if index not in without]
    return loss, losses, [weights[index] for index in kept], [gradients[index] for index in kept]


def _warn_of_untrained(weights, without):
    """Warn, as Keras does, of weights that training will not change.

    Args:
        weights: all that are trained.
        without: indices of those without a gradient.

    Raises:
        InputError: none of them has one.
    """
    if not weights:
        warnings.warn(
            "The network does not have any trainable weights. If it was saved as an average, set "
            "`network.trainable = True` before you compile",
            stacklevel=2,
        )
    elif len(without) == len(weights):
        raise InputError("network", "must have trainable weights on which its output depends", "none with a gradient")
    elif without:
        names = ", ".join(weights[index].path for index in sorted(without))
        warnings.warn(f"These weights do not enter the loss and will not be trained: {names}", stacklevel=2)


def _in_parts(of_part, weights, arrays, parts, at_once):
    """Return the loss, the loss of each image and the gradients, from `parts` calls of `of_part` in a loop."""
    batch = arrays[0].shape[0]
    if batch is None or batch % parts:
        raise InputError(
            "{accumulation} needs batches of one size, divisible by it on every replica",
            received=batch,
            accumulation=parts // at_once,
        )
    # One row per micro-batch, so that its shape stays static.
    rows = [None if a is None else tf.reshape(a, (parts, batch // parts, *a.shape[1:])) for a in arrays]

    def add(index, loss, losses, sums):
        part = [None if row is None else row[index] for row in rows]
        more, each, gradients = of_part(part)
        sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
        return index + 1, loss + more, losses.write(index, each), sums

    start = (
        tf.constant(0),
        tf.constant(0.0),
        tf.TensorArray(tf.float32, parts, element_shape=(batch // parts,)),
        [tf.zeros(weight.shape, weight.dtype) for weight in weights],
    )
    try:
        _, loss, losses, sums = tf.while_loop(lambda index, *_: index < parts, add, start, parallel_iterations=at_once)
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        expected = "must be 1 on several replicas, where a layer of this network brings a variable of theirs together"
        raise InputError("accumulation", expected, parts // at_once) from error
    return loss, tf.reshape(losses.stack(), [batch]), sums


def descend(
    optimizer: keras.optimizers.Optimizer,
    weights: list,
    gradients: list,
    norm: Tensor,
    clip_norm: float | None,
    is_finite: Tensor,
) -> None:
    """Clip the gradients by their global norm and apply them, or leave weights and optimizer unchanged.

    With n replicas the gradients are divided by n, because the optimizer sums them over the replicas once more.

    Args:
        optimizer: a built Keras optimizer.
        weights: variables to update.
        gradients: averaged over all replicas (`replicas.averaged`).
        norm: their global norm.
        clip_norm: largest norm, None = no clipping.
        is_finite: bool scalar, whether to apply them; the same on all replicas.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    scale = 1.0 / replicas
    if clip_norm is not None:
        scale *= clip_norm / tf.maximum(norm, clip_norm)

    def apply():
        _apply(optimizer, [g * tf.cast(scale, g.dtype) for g in gradients], weights)

    if not tf.distribute.has_strategy():
        tf.cond(is_finite, apply, lambda: None)
        return
    # Under a strategy the optimizer runs an all-reduce, which is not possible inside a tf.cond.
    changing = [*weights, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in changing]
    apply()
    for variable, old in zip(changing, before, strict=True):
        variable.assign(tf.where(is_finite, variable.value, old))


def _apply(optimizer, gradients, weights):
    """Apply gradients by the optimizer; Keras's Adam by one operator of TensorFlow a weight instead of twenty.

    Those take a tenth of the time of a small network's step, and of what any network takes to its first step.
    """
    if not _is_plain_adam(optimizer, weights):
        optimizer.apply(gradients, weights)
        return
    count = tf.cast(optimizer.iterations.value + 1, tf.float32)
    numbers = {
        "lr": tf.cast(optimizer.learning_rate, tf.float32),
        "beta1": optimizer.beta_1,
        "beta2": optimizer.beta_2,
        "beta1_power": optimizer.beta_1**count,
        "beta2_power": optimizer.beta_2**count,
        "epsilon": optimizer.epsilon,
    }
    for weight, gradient in zip(weights, gradients, strict=True):
        index = optimizer._get_variable_index(weight)
        var, m, v = (x.value.handle for x in (weight, optimizer._momentums[index], optimizer._velocities[index]))
        tf.raw_ops.ResourceApplyAdam(var=var, m=m, v=v, grad=gradient, **numbers)
    optimizer.iterations.assign_add(1)


def _is_plain_adam(optimizer, weights):
    """Return whether Adam does what Kingma & Ba 2015 say and nothing else, on one device."""
    if type(optimizer) is not keras.optimizers.Adam or tf.distribute.has_strategy():
        return False
    if not all(hasattr(optimizer, name) for name in ("_get_variable_index", "_momentums", "_velocities")):
        return False  # a Keras that keeps them elsewhere
    others = ["weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"]
    others += ["gradient_accumulation_steps", "use_ema", "amsgrad"]
    return not any(getattr(optimizer, name) for name in others) and all(
        weight.constraint is None and weight.dtype == "float32" and not weight.overwrite_with_gradient
        for weight in weights
    )
