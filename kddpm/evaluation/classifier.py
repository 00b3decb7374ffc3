"""A small convolutional classifier: its last hidden layer gives features, its output the classes of pictures.

Convolutions of 3x3 with batch normalisation (Ioffe & Szegedy 2015), halved in size until at most 7 pixels a side, then
the mean over all places: 64 features, and one dense layer to the classes. Trained by Adam with a cosine decay of the
learning rate, on images shifted by up to a fourteenth of their size.

    NAME.npz     the weights, float16, in order
    NAME.json    what they were trained on, their accuracy, their sha256
"""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import archives, arguments, files, progress, settings
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import expand, read_json, replacing, sha256
from kddpm.data import npz_files

FEATURES = 64
_WIDTHS = (24, 48)  # of the first level, and of all others
_SMALL = 7  # pixels a side that are not halved again
_LEARNING_RATE = 3e-3
_STORED = np.float16
_SHIFT = 14  # images are shifted by up to their side over this


@dataclasses.dataclass(frozen=True)
class About:
    """The content of the JSON file.

    Attributes:
        kddpm: version that trained it.
        image_shape: height, width, channels.
        class_names: in the order of the outputs.
        dataset: spec of the images that it was trained on.
        data_sets: specs and digests of data sets for which it is taken where none is named.
        images: number of images it was trained on.
        held_out: spec of the images, or how they were chosen, on which `accuracy` was measured.
        held_out_images: their number.
        accuracy: share of them whose class was the most probable.
        epochs, batch_size, seed: of the training.
        sha256: digest of the weights file.
    """

    kddpm: str
    image_shape: list[int]
    class_names: list[str]
    dataset: str
    data_sets: list[str]
    images: int
    held_out: str
    held_out_images: int
    accuracy: float
    epochs: int
    batch_size: int
    seed: int
    sha256: str = ""


@settings.keras_defaults()  # features are kept, and compared with those of another day
def build(image_shape: tuple[int, int, int], num_classes: int, seed: int = 0) -> keras.Model:
    """Build the network, with new weights.

    Args:
        image_shape: height, width, channels.
        num_classes: number of outputs.
        seed: of the weights.

    Returns:
        A model from float32 (B, H, W, C) in [-1, 1] to features (B, 64) and logits (B, num_classes).
    """
    seeds = iter(range(1000 * seed, 1000 * seed + 1000))

    def initializer():
        return keras.initializers.HeNormal(seed=next(seeds))

    def block(x, width):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer=initializer())(x)
        return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input(image_shape)
    side = max(image_shape[:2])
    levels = max(1, math.ceil(math.log2(side / _SMALL)))
    x = block(block(inputs, _WIDTHS[0]), _WIDTHS[0])
    for _ in range(levels):
        x = keras.layers.MaxPooling2D(padding="same")(x)
        x = block(block(x, _WIDTHS[1]), _WIDTHS[1])
    features = keras.layers.GlobalAveragePooling2D(name="features")(block(x, FEATURES))
    logits = keras.layers.Dense(num_classes, kernel_initializer=initializer(), name="logits")(features)
    return keras.Model(inputs, [features, logits])


def train(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    verbose: bool | str = "auto",
) -> keras.Model:
    """Train a classifier.

    Args:
        images: uint8 (N, H, W, C).
        labels: int (N,), in 0 .. num_classes - 1.
        num_classes: at least 2.
        epochs: passes over the images.
        batch_size: images a step.
        seed: of the weights, the order and the shifts.
        verbose: whether to show a progress bar.

    Returns:
        The trained network of `build`; its weights are rounded to float16, in which they are stored.

    Raises:
        InputError: labels out of range or not one an image, or fewer than 2 classes.
    """
    arguments.count("num_classes", num_classes, 2)
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError("labels", f"must be one an image, in 0 .. {num_classes - 1}", f"{labels!r:.60}")
    network = build(images.shape[1:], num_classes, seed)
    size = min(arguments.count("batch_size", batch_size), len(images))
    steps = arguments.count("epochs", epochs) * (len(images) // size)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps))
    optimizer.build(network.trainable_variables)
    step = _training_step(network, optimizer)
    rng = np.random.default_rng(seed)
    with progress.bar(steps, f"Training a classifier on {len(images)} images", "step", verbose) as bar:
        for _ in range(epochs):
            order = rng.permutation(len(images))
            for first in range(0, len(images) - size + 1, size):
                rows = order[first : first + size]
                step(tf.constant(_shifted(np.asarray(images[np.sort(rows)]), rng)), tf.constant(labels[np.sort(rows)]))
                bar.update(1)
    for weight in network.weights:
        weight.assign(np.asarray(weight).astype(_STORED).astype(np.float32))
    return network


def _training_step(network, optimizer):
    @tf.function(autograph=False)
    def step(images, labels):
        with tf.GradientTape() as tape:
            _, logits = network(as_inputs(images), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)

    return step


def _shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return images, each shifted by its own whole pixels, its border repeated."""
    most = min(images.shape[1:3]) // _SHIFT
    if not most:
        return images
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], axis=(1, 2))  # (B, h, w, C, H, W)
    down, right = rng.integers(0, 2 * most + 1, (2, len(images)))
    return np.ascontiguousarray(np.moveaxis(windows[np.arange(len(images)), down, right], 1, -1))


def as_inputs(images):
    """Return uint8 images as what the network takes, float32 in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1


def accuracy(network: keras.Model, images: np.ndarray, labels: np.ndarray, batch_size: int = 256) -> float:
    """Return the share of images whose own class is the most probable.

    Args:
        network: as `train` returns it.
        images: uint8 (N, H, W, C).
        labels: int (N,).
        batch_size: images at a time.
    """
    parts = (slice(first, first + batch_size) for first in range(0, len(images), batch_size))
    right = [np.argmax(network(as_inputs(images[rows]), training=False)[1], axis=1) == labels[rows] for rows in parts]
    return float(np.concatenate(right).mean())


def check_output(name: str, path: str | os.PathLike) -> None:
    """Check that `save` can write at `path`, and replaces nothing but an extractor.

    Args:
        name: name of the argument.
        path: NAME, with or without .npz.

    Raises:
        InputError: NAME.npz or NAME.json is a folder, cannot be written, or is there and is no extractor's.
    """
    weights, description = _paths(path)
    for place in (weights, description):
        files.check_output(name, place, is_folder=False)
    if weights.exists() or description.exists():
        try:
            read_about(description)
        except (OSError, ValueError, TypeError) as error:
            there = weights if weights.exists() else description
            received = f"{there}, which is there and is none: {first_line(error)}"
            raise InputError(name, "must be a new name, or that of an extractor", received) from None


def save(network: keras.Model, about: About, path: str | os.PathLike) -> About:
    """Write NAME.npz and NAME.json.

    Args:
        network: as `train` returns it.
        about: of it; its sha256 is filled in.
        path: NAME, with or without .npz.

    Returns:
        What was written into NAME.json.
    """
    weights, description = _paths(path)
    with replacing(weights) as temporary:
        arrays: dict[str, Any] = {
            _member(i): np.asarray(weight).astype(_STORED) for i, weight in enumerate(network.weights)
        }
        np.savez(temporary, **arrays)
        about = dataclasses.replace(about, sha256=sha256(temporary))
    with replacing(description) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(about), indent=1) + "\n")
    return about


def load(path: str | os.PathLike) -> tuple[keras.Model, About]:
    """Read what `save` wrote.

    Raises:
        InputError: a file is missing or damaged, or the two do not fit each other.
    """
    weights, description = _paths(path)
    try:
        about = read_about(description)
        if sha256(weights) != about.sha256:
            raise ValueError(f"the sha256 of {weights.name} is not that in {description.name}")
        height, width, channels = about.image_shape
        network = build((height, width, channels), len(about.class_names))
        with archives.opened(weights) as archive:
            for i, weight in enumerate(network.weights):
                weight.assign(
                    npz_files.read_array(archive, _member(i), tuple(weight.shape), _STORED).astype(np.float32)
                )
    except (*npz_files.ERRORS, TypeError) as error:
        raise InputError("extractor", f"{weights} cannot be read: {first_line(error)}") from None
    return network, about


def read_about(path: str | os.PathLike) -> About:
    """Read NAME.json.

    Raises:
        OSError, ValueError or TypeError: it is missing or not such a file.
    """
    about = About(**read_json(path))
    shape = about.image_shape
    if len(shape) != 3 or not all(type(n) is int and 1 <= n <= 2**14 for n in shape) or shape[2] not in (1, 3):
        raise ValueError(f"`image_shape` must be height, width and 1 or 3. Received: {shape!r:.60}")
    if not 2 <= len(about.class_names) <= 2**16 or not all(type(name) is str for name in about.class_names):
        raise ValueError("`class_names` must be two names or more")
    if not all(type(name) is str for name in about.data_sets):
        raise ValueError("`data_sets` must be text")
    if type(about.accuracy) not in (int, float) or not 0 <= about.accuracy <= 1:
        raise ValueError(f"`accuracy` must lie in 0 .. 1. Received: {about.accuracy!r:.60}")
    return about


def _paths(path):
    stem = expand(path).removesuffix(".npz").removesuffix(".json")
    return pathlib.Path(f"{stem}.npz"), pathlib.Path(f"{stem}.json")


def _member(index: int) -> str:
    return f"{index:03d}"
