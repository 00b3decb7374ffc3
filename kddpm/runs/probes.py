"""Figures of images, and of a network's predictions at some t; `kddpm.runs.doctor` takes them for a run."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kddpm import data
from kddpm.data import images
from kddpm.evaluation.batches import on_replicas
from kddpm.evaluation.chain import ReverseChain
from kddpm.runs.config import TrainConfig
from kddpm.sampling import noise
from kddpm.sampling.denoiser import Denoiser
from kddpm.theory import linear_denoiser, objectives
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import split_output

_MOST_IMAGES = 10_000
_MOST_VALUES = 2**25  # of the images that are looked at; 134 MB as float32
_BATCH = 64
_TINY = 1e-12  # of a power, where the target is nothing
BOUND_VARIANCES = ("learned", "small", "large")  # of `bound_terms`

# (x_0, seeds, labels, t) -> target and prediction, each (B, H, W, C)
Predictions = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def sample(source: data.ImageData) -> np.ndarray:
    """Return images to look at, uint8: all, or as many as memory has room for, evenly over the data set."""
    count = len(source.images)
    most = min(_MOST_IMAGES, max(_MOST_VALUES // math.prod(source.images.shape[1:]), 2))
    return np.asarray(source.images[np.linspace(0, count - 1, min(count, most)).round().astype(int)])


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels as x_0 in [-1, 1], float32."""
    return np.asarray(images.to_float(pixels))


def variances(config: TrainConfig, x_0: np.ndarray) -> np.ndarray:
    """Return `linear_denoiser.variances` of images in [-1, 1] as training sees them."""
    seen = np.concatenate([x_0, x_0[:, :, ::-1]]) if config.horizontal_flip else x_0
    return linear_denoiser.variances(seen)


def predictions(denoiser: Denoiser) -> Predictions:
    """Compile the network with its target: image k has the noise of seed k."""
    process, prediction = denoiser.process, denoiser.objective.prediction
    names = denoiser.schedule.timesteps.astype(np.int32)

    def of(x_0, seeds, label, t):
        eps = noise.normal(seeds, noise.EVALUATION_STREAM, 0, denoiser.image_shape)
        x_t = process.q_sample(x_0, t, eps)
        target = eps if prediction == "eps" else process.from_x0(x_t, t, x_0, prediction)
        predict = denoiser.predictor(label if denoiser.num_classes else None)
        return target, predict(x_t, tf.gather(names, t))

    vector = tf.TensorSpec((None,), tf.int32)
    pixels = tf.TensorSpec((None, *denoiser.image_shape), tf.float32)
    return on_replicas(denoiser.strategy, of, [pixels, vector, vector, vector], scalars=0)


def bound_terms(denoiser: Denoiser) -> Predictions:
    """Compile the terms L_t of the bound, in nats, with each of `BOUND_VARIANCES`: three (B,), float64.

    The network has a learned variance. Its prediction and the noise are the same with each.
    """
    chain = ReverseChain(denoiser, None, "trailing", clip=True)
    process, objectives_of = chain.process, [Objective("x0", variance=name) for name in BOUND_VARIANCES[1:]]

    def of(x_0, seeds, label, t):
        x_0 = tf.cast(x_0, tf.float64)
        eps = tf.cast(noise.normal(seeds, noise.EVALUATION_STREAM, 0, denoiser.image_shape), tf.float64)
        x_t = process.q_sample(x_0, t, eps)
        predicted = chain.predictor(label)(x_t, t)
        x_0_only, _ = split_output(predicted, chain.objective)
        said = [(predicted, chain.objective), *((x_0_only, objective) for objective in objectives_of)]
        return tuple(objectives.bound_term_nats(process, x_t, t, x_0, *each) for each in said)

    vector = tf.TensorSpec((None,), tf.int32)
    pixels = tf.TensorSpec((None, *denoiser.image_shape), tf.float32)
    return on_replicas(denoiser.strategy, of, [pixels, vector, vector, vector], scalars=0)


class Errors(NamedTuple):
    """What was measured of predictions at some t.

    Attributes:
        losses: mean squared errors over the pixels, (K, N) for K values of t and N images.
        powers: mean squares of the targets, (K,).
        outputs: mean squares of the predictions, (K,).
    """

    losses: np.ndarray
    powers: np.ndarray
    outputs: np.ndarray


def errors_at(
    predict: Predictions,
    x_0: np.ndarray,
    labels: np.ndarray,
    timesteps: np.ndarray,
    seed: int,
    done: Callable[[int], object],
) -> Errors:
    """Measure predictions of the same images at every t, each with noise of its own.

    Args:
        predict: of `predictions`.
        x_0: images in [-1, 1], float32 (N, H, W, C).
        labels: int32 (N,), of no account for a network without classes.
        timesteps: t, int32 (K,).
        seed: of the noise.
        done: is told after each t how many images are done.
    """
    rows = []
    for row, t in enumerate(timesteps):
        target, output = _at(predict, x_0, labels, t, seed + row * len(x_0))
        rows.append((_squares(target - output), _squares(target).mean(), _squares(output).mean()))
        done(len(x_0))
    losses, powers, outputs = (np.array(column) for column in zip(*rows, strict=True))
    return Errors(losses, np.maximum(powers, _TINY), outputs)


def bounds_at(terms: Predictions, x_0: np.ndarray, labels: np.ndarray, timesteps: np.ndarray, seed: int) -> np.ndarray:
    """Return the terms of the bound in nats, (3, K, N) for each of `BOUND_VARIANCES`; arguments as of `errors_at`.

    Args:
        terms: of `bound_terms`.
        x_0: images in [-1, 1], float32 (N, H, W, C).
        labels: int32 (N,).
        timesteps: t, int32 (K,).
        seed: of the noise.
    """
    rows = [np.array(list(_at(terms, x_0, labels, t, seed + k * len(x_0)))) for k, t in enumerate(timesteps)]
    return np.stack(rows, axis=1)


def effect_of_labels(
    predict: Predictions, x_0: np.ndarray, labels: np.ndarray, num_classes: int, t: int, seed: int
) -> tuple[float, float, float]:
    """Measure what labels do at one t.

    Args:
        predict: of `predictions`.
        x_0: images in [-1, 1], float32 (N, H, W, C).
        labels: the right ones, int32 (N,).
        num_classes: of the network.
        t: the noise level.
        seed: of the noise, and of the wrong labels.

    Returns:
        The root mean square of the difference of the predictions; the loss that a wrong label adds, over the square of
        that; its standard error.
    """
    apart = np.random.default_rng(seed % 2**32).integers(1, num_classes, len(labels))
    wrong = ((labels + apart) % num_classes).astype(np.int32)
    target, right = _at(predict, x_0, labels, t, seed)
    _, other = _at(predict, x_0, wrong, t, seed)
    gains = _squares(target - other) - _squares(target - right)
    square = _squares(right - other).mean()
    scale = max(square, _TINY)
    return math.sqrt(square), gains.mean() / scale, gains.std() / math.sqrt(len(gains)) / scale


def _at(predict, x_0, labels, t, seed):
    """Return target and prediction of each image at one t."""
    seeds = ((seed + np.arange(len(x_0)) + 2**31) % 2**32 - 2**31).astype(np.int32)
    parts = []
    for first in range(0, len(x_0), _BATCH):
        rows = slice(first, first + _BATCH)
        parts.append(predict(x_0[rows], seeds[rows], labels[rows], np.full(len(x_0[rows]), t, np.int32)))
    return (np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True))


def _squares(values):
    """Return the mean square of each image, (N,)."""
    return np.square(values).mean(axis=(1, 2, 3))
