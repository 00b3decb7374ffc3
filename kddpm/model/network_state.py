"""What a step changes in a network besides the weights that it trains: moving statistics, counters, random states."""

import keras
import tensorflow as tf

from kddpm.base.types import Tensor
from kddpm.distribution import replicas

_RANDOM = "seed_generator_state"  # Keras's name of the variable of its random layers
_PURPOSE = 2  # beside those of `draws`


class Before:
    """The state of a network before a step.

    Args:
        network: a Keras model.
    """

    def __init__(self, network: keras.Model):
        metrics = [variable for metric in layer_metrics(network) for variable in metric.variables]
        # Where there is state, the trained weights too: SpectralNormalization moves them in the forward pass.
        self._variables = [*network.variables, *metrics] if has_state(network) else []
        self._values = [tf.identity(variable.value) for variable in self._variables]
        if self._variables:
            # All replicas have read before one writes: Keras gives them one random state in common.
            tf.distribute.get_replica_context().merge_call(lambda strategy: None)

    def kept_if(self, is_finite: Tensor) -> Tensor:
        """Return `is_finite`, false also where a number of the state ceased to be finite, and take all back if it is.

        Args:
            is_finite: bool scalar, whether loss and gradients are finite; the same on all replicas.
        """
        if not self._variables:
            return is_finite
        pairs = list(zip(self._variables, self._values, strict=True))
        lost = [tf.constant(False)] + [
            tf.reduce_any(tf.math.is_finite(old) & ~tf.math.is_finite(variable.value))
            for variable, old in pairs
            if old.dtype.is_floating
        ]
        (count,) = replicas.summed([tf.cast(tf.reduce_any(lost), tf.float32)])
        is_finite &= count == 0
        for variable, old in pairs:
            variable.assign(tf.where(is_finite, variable.value, old))
        return is_finite


def has_state(network: keras.Model) -> bool:
    """Return whether a step may change more of a network than the weights that it trains."""
    return bool(network.non_trainable_variables or any(metric.variables for metric in layer_metrics(network)))


def reseed(network: keras.Model, seed: int, step: Tensor) -> None:
    """Set the state of Keras's own random layers, such as Dropout, to a function of (seed, step).

    Without it they would draw other numbers after a resume, as no file holds their state.
    """
    states = [variable for variable in network.non_trainable_variables if variable.name == _RANDOM]
    fold_in = tf.random.experimental.stateless_fold_in
    for index, state in enumerate(states):
        key = fold_in(fold_in(tf.constant([seed, _PURPOSE], tf.int32), step), index)
        state.assign(tf.cast(key, state.dtype))


def layer_metrics(network: keras.Model) -> list[keras.metrics.Metric]:
    """Return the metrics of a network's layers; not of the network itself, whose loss would be another one."""
    layers = [layer for layer in network._flatten_layers() if not isinstance(layer, keras.Model)]
    return [metric for layer in layers for metric in layer.metrics]


def layer_losses(network: keras.Model, trained: keras.Model) -> list[Tensor]:
    """Return what the layers add to the loss in the last call: `add_loss` and regularizers, float32 scalars.

    Args:
        network: the network that was called.
        trained: the network itself, or the one of which it is the average, and which says what is trained.
    """
    losses = list(network.losses)
    if network is not trained:  # an average trains nothing, so Keras does not regularize it
        pairs = zip(trained.weights, network.weights, strict=True)
        losses += [ours.regularizer(weight.value) for ours, weight in pairs if ours.trainable and ours.regularizer]
    return [tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in losses]


def update_average(
    average: keras.Model, network: keras.Model, momentum: float, step: Tensor, is_finite: Tensor
) -> None:
    """Move an exponential moving average towards the weights that are trained, and copy all others.

    Args:
        average: a network of the same layers.
        network: the network that is trained.
        momentum: m, the fraction of the average that is kept; early on min(m, (1 + step) / (10 + step)).
        step: number of steps before this one.
        is_finite: bool scalar, whether the weights are those of a step that was taken.
    """
    step = tf.cast(step, tf.float32)
    momentum = tf.minimum(momentum, (1 + step) / (10 + step))
    for mean, weight in zip(average.weights, network.weights, strict=True):
        if weight.trainable:
            mean.assign(tf.where(is_finite, weight + momentum * (mean - weight), mean))
        else:
            mean.assign(weight)
