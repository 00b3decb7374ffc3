"""Models around the least network, and what is done to them."""

import keras
import numpy as np
import tensorflow as tf

import kddpm
from helpers.networks import OneConv, T
from kddpm.theory import schedules

SHAPE = (4, 4, 1)
ZERO_SNR = schedules.zero_terminal_snr(schedules.linear(T, 1e-3, 0.5))


def small(optimizer="adam", network=None, **changes):
    """A compiled model around `OneConv`; the same weights every time. XLA would draw other noise."""
    keras.utils.set_random_seed(0)
    model = kddpm.DiffusionModel(OneConv(**(network or {})), kddpm.schedules.linear(T, 1e-3, 0.5), **changes)
    model.compile(optimizer, jit_compile=False)
    return model


def train(model, x, y=None, batch_size=4, **kwargs):
    """The history of a fit, in the order of the images."""
    return model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, **kwargs).history


def evaluate(model, x, y=None, batch_size=4):
    """The loss of the averaged weights."""
    return model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)["loss"]


def weights(model):
    """Those that are trained, as they are now."""
    return [w.copy() for w in model.network.get_weights()]


class Weights(keras.callbacks.Callback):
    """Keeps the weights after every step."""

    def on_train_begin(self, logs=None):
        self.history = [weights(self.model)]

    def on_train_batch_end(self, batch, logs=None):
        self.history.append(weights(self.model))


def drawn_by(model, step, x_0, label=None):
    """t, weight, noise, labels and dropout seed of one step of training."""
    label = None if label is None else tf.constant(label, tf.int32)
    drawn = model._draw(tf.constant(step, tf.int64), x_0, label)
    return [None if part is None else part.numpy() for part in drawn]


def give_history(model):
    """Losses of every t as seen often, so that t are drawn unevenly; returns how often each is."""
    model.loss_squares.assign(np.arange(1, T + 1) ** 2)
    model.loss_counts.assign(np.full(T, 10))
    roots = np.arange(1, T + 1)
    return 0.999 * roots / roots.sum() + 0.001 / T


def as_dataset(x, y=None):
    """Batches of four, of images or of images and labels."""
    return tf.data.Dataset.from_tensor_slices(x if y is None else (x, y)).batch(4)


class Replica:
    """What `tf.distribute.get_replica_context` gives to one of several replicas."""

    def __init__(self, number, replicas=2):
        self.replica_id_in_sync_group, self.num_replicas_in_sync = number, replicas
