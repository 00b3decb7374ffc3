"""Checks of images and labels on their way into `fit`, `evaluate` and the like: wrong ones raise an error of one line.

Every source is checked for the same: shape, type, range and labels. An array is checked as a whole, the batches of a
`tf.data.Dataset`, a `PyDataset` or a generator as they are read, and what cannot be read here is checked in the step
itself (`prepared`).
"""

import itertools
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.data import images as kd_images
from kddpm.data import labels as class_labels

_LARGEST = 1 + 1 / 255  # beyond 1 by half a grey level: rounding, which is clipped
_ENOUGH = 64  # images to judge their scale by
_BLACK = -0.99  # above 1 / 127.5 - 1, which is white where images in [0, 1] were taken for 0 .. 255


class Guard:
    """Checks what one call of `fit` or `evaluate` reads.

    As a context it raises the `InputError` of a wrong batch in place of TensorFlow's graph error, and warns once of
    images that do not look scaled to [-1, 1].

    Args:
        image_shape: (H, W, C) that the network expects.
        classes: number of classes, None = ignore labels.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int | None):
        self._expected = tuple(image_shape), classes
        self._sources: list[_Source] = []  # those that are read batch by batch
        self._has_warned = False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, tf.errors.OpError):
            found = [source.error for source in self._sources if source.error]
            # A process of a `PyDataset` leaves nothing but its line in TensorFlow's message.
            found += map(InputError, re.findall(r"^InputError: (.*)", error.message, re.MULTILINE))
            if found:
                raise found[0] from None
        if error is None:
            self.warn(at_end=True)

    def source(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        """Return x and y for Keras: the same images and labels, checked now or as they are read.

        Args:
            x: an array (N, H, W, C); or a `tf.data.Dataset`, `PyDataset` or iterator of batches, which are images,
                (images,) or (images, labels). Of any other iterable, such as a distributed dataset, only the first
                batch is read here: all are checked in the step.
            y: labels of an array (N,), or None.

        Raises:
            InputError: as in `check_arrays`, or a dataset of something else.
        """
        if isinstance(x, tf.data.Dataset):
            return self._dataset(x), y
        if isinstance(x, keras.utils.PyDataset):
            return _CheckedPyDataset(x, self._new_source()), y
        if isinstance(x, Iterator):
            source = self._new_source()
            return (source.checked(batch) for batch in x), y
        if hasattr(x, "shape") and not isinstance(x, tf.SparseTensor | tf.RaggedTensor):
            y = np.asarray(y) if isinstance(y, list | tuple | range) else y
            self.arrays(x, y)
        elif isinstance(x, Iterable) and not isinstance(x, list | tuple | dict | str | tf.RaggedTensor):
            for batch in itertools.islice(x, 1):
                self._new_source().checked(tf.nest.map_structure(_of_first_replica, batch))
        else:
            raise InputError(
                "Images must be one array (N, H, W, C), a tf.data.Dataset, a PyDataset or a generator",
                received=type(x).__name__,
            )
        return x, y

    def arrays(self, images: Any, labels: Any = None) -> None:
        """Check arrays that are complete, as `check_arrays` does, and warn of their scale.

        Raises:
            InputError: as in `check_arrays`.
        """
        array = _Source(*self._expected)
        array.checked((images, labels))
        self._warn_of(array)

    def warn(self, at_end: bool = False) -> None:
        """Warn, unless it was done already, if images read so far do not look scaled to [-1, 1].

        Args:
            at_end: whether an epoch has ended, so that few images are all there are.
        """
        for source in self._sources:
            if at_end or source.count >= _ENOUGH:
                self._warn_of(source)

    def _warn_of(self, source):
        if not self._has_warned and source.doubt:
            self._has_warned = True
            warnings.warn(source.doubt, stacklevel=2)

    def _new_source(self):
        self._sources.append(_Source(*self._expected))
        return self._sources[-1]

    def _dataset(self, dataset):
        """Return a `tf.data.Dataset` whose batches are checked as they are read."""
        image_shape, classes = self._expected
        spec, *others = dataset.element_spec if isinstance(dataset.element_spec, tuple) else (dataset.element_spec,)
        if not isinstance(spec, tf.TensorSpec):
            raise InputError("A dataset must give images, or (images, labels)", received=dataset.element_spec)
        _check_shape_and_type(spec.shape, spec.dtype, image_shape)
        has_labels = bool(classes and others)
        if has_labels:
            _check_label_shape(others[0].shape)
            _check_label_type(others[0].dtype, classes)
        options = tf.data.Options()  # each of several workers takes its part of every batch, not of the files
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        source = self._new_source()

        def look(*arrays):
            source.checked(arrays)
            return True

        @tf.autograph.experimental.do_not_convert  # as in `order.batches`
        def checked(images, *rest):
            with tf.control_dependencies([tf.numpy_function(look, [images, *rest[:has_labels]], tf.bool)]):
                images = tf.ensure_shape(tf.identity(images), (None, *image_shape))
            return (images, *rest) if rest else images

        return dataset.map(checked, num_parallel_calls=tf.data.AUTOTUNE).with_options(options)


def check_arrays(
    images: Any, labels: Any, image_shape: tuple[int, int, int], classes: int | None
) -> tuple[float, float]:
    """Check images (N, H, W, C) and their labels (N,), or None, and return the images' least and largest value.

    Of uint8 images, those of the first 64, in [-1, 1].

    Raises:
        InputError: images of another shape or type, none of them, values outside [-1, 1] or NaN; labels that are not
            one an image, integers in 0 .. classes - 1.
    """
    images = np.asarray(images)
    _check_shape_and_type(images.shape, images.dtype, image_shape)
    if not len(images):
        raise InputError("Images must be at least one", received="none")
    if classes and labels is not None:
        labels = np.asarray(labels)
        _check_label_shape(labels.shape)
        if len(labels) != len(images):
            raise InputError("labels", "must be one an image", f"{len(labels)} labels, {len(images)} images")
        class_labels.check(labels, classes)
    if images.dtype == np.uint8:  # maybe a file on the disk, of which only the beginning is read
        some = images[:_ENOUGH]
        return np.min(some) / 127.5 - 1, np.max(some) / 127.5 - 1
    low, high = np.min(images), np.max(images)
    if not (-_LARGEST <= low and high <= _LARGEST):  # NaN as well
        received = "NaN" if np.isnan(low) else f"from {arguments.shortest(low)} to {arguments.shortest(high)}"
        raise InputError("Images must be uint8, or finite floats in [-1, 1] (x / 127.5 - 1)", received=received)
    return float(low), float(high)


def prepared(
    images: Tensor, labels: Tensor, image_shape: tuple[int, int, int], classes: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch as a step computes with it, and whether that is what came.

    Args:
        images: uint8 or float (B, H, W, C).
        labels: integers (B,) or (B, 1); not read if there are no classes.
        image_shape: (H, W, C) that the network expects.
        classes: number of classes, or None.

    Returns:
        The images, float32 in [-1, 1]; the labels, int32 (B,) in 0 .. classes - 1, or None; and a bool scalar, False if
        values had to be brought into these ranges by more than rounding.

    Raises:
        InputError: another shape or type.
    """
    if tf.executing_eagerly():
        check_arrays(images, labels, image_shape, classes)
    images = tf.convert_to_tensor(images)
    _check_shape_and_type(images.shape, images.dtype, image_shape)
    images = tf.ensure_shape(images, (None, *image_shape))
    is_valid = tf.constant(True)
    if images.dtype == tf.uint8:
        x_0 = kd_images.to_float(images)
    else:
        x_0 = tf.cast(images, tf.float32)
        is_valid &= tf.reduce_all(tf.abs(x_0) <= _LARGEST)  # false for NaN
        x_0 = tf.clip_by_value(x_0, -1.0, 1.0)
    if not classes:
        return x_0, None, is_valid
    labels = tf.convert_to_tensor(labels)
    _check_label_shape(labels.shape)
    _check_label_type(labels.dtype, classes)
    labels = tf.reshape(tf.cast(labels, tf.int64), [-1])
    inside = tf.clip_by_value(labels, 0, classes - 1)
    return x_0, tf.cast(inside, tf.int32), is_valid & tf.reduce_all(inside == labels)


def shareable_batches(x: Tensor, y: Tensor, batch_size: int, shuffle: bool, seed: int) -> tf.data.Dataset:
    """Return a dataset of batches of one size from arrays; an incomplete last batch of an epoch is dropped.

    Args:
        x: images (N, H, W, C).
        y: labels (N,), or None.
        batch_size: images a batch.
        shuffle: whether to shuffle anew for every epoch.
        seed: of the shuffling.

    Raises:
        InputError: the batch is larger than the data.
    """
    if batch_size > len(x):
        raise InputError("batch_size", f"must be at most the {len(x)} images", batch_size)

    @tf.autograph.experimental.do_not_convert  # as in `order.batches`
    def gather(indices):
        # The array stays outside the graph, so that nothing is copied.
        images = tf.ensure_shape(tf.numpy_function(lambda i: x[i], [indices], x.dtype), (batch_size, *x.shape[1:]))
        return images if y is None else (images, tf.gather(y, indices))

    order = tf.data.Dataset.range(len(x))
    if shuffle:
        order = order.shuffle(len(x), seed=seed)
    return order.batch(batch_size, drop_remainder=True).map(gather).prefetch(tf.data.AUTOTUNE)


def size_of_batches(dataset: object, replicas: int) -> int:
    """Return the static size of a dataset's batches.

    Raises:
        InputError: not a dataset, no static batch size, or one that the replicas do not divide.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise InputError(
            f"{replicas} replicas train on an array or a tf.data.Dataset. Received: {type(dataset).__name__}"
        )
    size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
    if not size or size % replicas:
        raise InputError(
            f"Batches must be of one size, divisible by the {replicas} replicas, as `batch_size`, or as "
            f"`.batch(size, drop_remainder=True)` of a dataset. Received: {size or 'any size'}"
        )
    return size


class _Source:
    """What was seen of one source of images: their type, their least and largest value, and what was wrong."""

    def __init__(self, image_shape, classes):
        self._expected = image_shape, classes
        self._dtype, self.low, self.high, self.count = None, math.inf, -math.inf, 0
        self.error: InputError | None = None

    def checked(self, batch):
        """Return a batch of Python's as a tuple, or remember what is wrong with it and raise it."""
        try:
            parts = tuple(part for part in keras.utils.unpack_x_y_sample_weight(batch) if part is not None)
            if not parts or not hasattr(parts[0], "shape"):
                received = type(parts[0] if parts else batch).__name__
                raise InputError("A batch must be images, or (images, labels)", received=received)
            self._look(np.asarray(parts[0]), parts[1] if parts[1:] else None)
        except InputError as error:
            self.error = error
            raise
        return parts[:1] + tuple(np.asarray(part) if isinstance(part, list) else part for part in parts[1:])

    def _look(self, images, labels):
        low, high = check_arrays(images, labels, *self._expected)
        if self._dtype not in (None, images.dtype):  # Keras would convert them to the type of the first
            raise InputError("Images must be of one type", received=f"{self._dtype}, then {images.dtype}")
        self._dtype, self.count = images.dtype, self.count + len(images)
        self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def doubt(self):
        """Why these images are probably not what was meant, or None."""
        is_dark = -1 < self.high <= _BLACK
        if is_dark and self._dtype == np.uint8:
            return "The images are 0 and 1, of 0 .. 255: black. If 1 stands for white, pass x * 255"
        if is_dark:
            return (
                f"The images lie in [{self.low:g}, {self.high:g}], which is black. If they were in [0, 1] before "
                "x / 127.5 - 1, pass x * 2 - 1 instead"
            )
        if self.count and self.low >= 0 and self._dtype != np.uint8:
            return (
                f"The images lie in [{self.low:g}, {self.high:g}]; floats are expected in [-1, 1]. "
                "If 0 stands for black, pass x * 2 - 1"
            )
        return None


class _CheckedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` with a check of every batch."""

    def __init__(self, dataset, source):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._source = dataset, source

    def __getitem__(self, index):
        return self._source.checked(self._dataset[index])

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def _check_shape_and_type(shape, dtype, image_shape):
    if not tf.TensorShape(shape).is_compatible_with((None, *image_shape)):
        expected = ", ".join(str(n) for n in ("N", *image_shape))
        received = ", ".join("N" if n is None else str(n) for n in shape)
        raise InputError(f"Images must have the shape ({expected}) of the network", received=f"({received})")
    dtype = tf.as_dtype(dtype)
    if not (dtype == tf.uint8 or dtype.is_floating):
        raise InputError("Images must be uint8, or float in [-1, 1]", received=dtype.name)


def _check_label_shape(shape):
    if not tf.TensorShape(shape).is_compatible_with((None,)) and tuple(shape[1:]) != (1,):
        raise InputError("Labels must be class numbers, one an image", received=f"shape {tuple(shape)}")


def _check_label_type(dtype, classes):
    if not dtype.is_integer:
        raise InputError("labels", f"must be integers in 0 .. {classes - 1}", dtype.name)


def _of_first_replica(value):
    """Return what the first replica gets of a distributed value."""
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value
