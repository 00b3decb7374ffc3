"""Checks of the images and labels passed to `fit` or `evaluate`: wrong ones raise an error of one line."""

import warnings

import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.data import labels as class_labels


class Watch:
    """Context in which a wrong batch of a dataset raises its `InputError`, instead of TensorFlow's graph error."""

    def __init__(self) -> None:
        self._found: InputError | None = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self._found is not None and isinstance(error, tf.errors.InvalidArgumentError | tf.errors.UnknownError):
            raise self._found from None

    def refuse(self, error: InputError) -> None:
        """Reject the current batch and remember why.

        Raises:
            InputError: `error`.
        """
        self._found = error
        raise error


def checked_images(
    x: Tensor, y: Tensor, image_shape: tuple[int, int, int], classes: int | None, watch: Watch | None = None
) -> Tensor:
    """Return x after checking that it holds images of that shape; a dataset's batches are checked as they are read.

    Args:
        x: an array, or a `tf.data.Dataset` of images or (images, labels). Keras's other sources, such as a
            `PyDataset`, are not checked.
        y: labels of an array, or None.
        image_shape: (H, W, C) that the network expects.
        classes: number of classes, None = ignore labels.
        watch: context in which the batches of a dataset will be read.

    Raises:
        InputError: wrong shape or type, values outside [-1, 1] or NaN, labels out of range.
    """
    if isinstance(x, tf.data.Dataset):
        spec, *labels = x.element_spec if isinstance(x.element_spec, tuple) else (x.element_spec,)
        if not isinstance(spec, tf.TensorSpec):
            raise InputError("A dataset must give images, or (images, labels)", received=x.element_spec)
        if classes and labels:
            _check_label_shape(labels[0].shape)
        _check_shape_and_type(spec.shape[1:], spec.dtype, image_shape)
        options = tf.data.Options()  # each of several workers takes its part of every batch, not of the files
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        checked = x.map(
            lambda *batch: _checked_batch(batch, classes, watch or Watch()), num_parallel_calls=tf.data.AUTOTUNE
        )
        return checked.with_options(options)
    if x is None or isinstance(x, list | tuple | dict):
        raise InputError("Images must be one array (N, H, W, C) or a tf.data.Dataset", received=type(x).__name__)
    if not hasattr(x, "shape"):
        return x
    _check_shape_and_type(x.shape[1:], x.dtype, image_shape)
    if x.dtype != np.uint8 and len(x):
        low, high = float(np.min(x)), float(np.max(x))
        if not (low >= -1 and high <= 1):
            raise _out_of_range(low, high)
        if low >= 0:
            warnings.warn(
                f"The images lie in [{low:g}, {high:g}]; floats are expected in [-1, 1]. "
                "If 0 stands for black, pass x * 2 - 1",
                stacklevel=4,
            )
    if classes and y is not None:
        _check_label_shape(np.shape(y))
        class_labels.check(np.asarray(y), classes)
    return x


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


def _check_label_shape(shape):
    if len(shape) != 1 and tuple(shape[1:]) != (1,):
        raise InputError("Labels must be class numbers, one an image", received=f"shape {tuple(shape)}")


def _check_shape_and_type(shape, dtype, image_shape):
    if tuple(shape) != tuple(image_shape):
        expected, received = (", ".join(str(n) for n in ("N", *s)) for s in (image_shape, shape))
        raise InputError(f"Images must have the shape ({expected}) of the network", received=f"({received})")
    dtype = tf.as_dtype(dtype)
    if not (dtype == tf.uint8 or dtype.is_floating):
        raise InputError("Images must be uint8, or float in [-1, 1]", received=dtype.name)


def _out_of_range(low: float, high: float) -> InputError:
    expected = "Images must be uint8, or finite floats in [-1, 1] (x / 127.5 - 1)"
    return InputError(expected, received=f"from {low:g} to {high:g}")


def _checked_batch(batch, classes, watch):
    images, *labels = batch

    def judge(values, inside, error_of):
        """Reject the batch if a value is not inside."""

        def look(inside, low, high):
            return inside or watch.refuse(error_of(low, high))

        return tf.numpy_function(look, [inside, tf.reduce_min(values), tf.reduce_max(values)], tf.bool)

    checks = []
    if images.dtype != tf.uint8:
        inside = tf.reduce_all(tf.abs(images) <= 1)  # false for NaN as well
        checks.append(judge(tf.cast(images, tf.float32), inside, _out_of_range))
    if classes and labels:
        inside = tf.reduce_all((labels[0] >= 0) & (labels[0] < classes))
        checks.append(
            judge(
                labels[0],
                inside,
                lambda low, high: InputError(
                    f"Labels must lie in 0 .. {classes - 1}", received=f"from {low} to {high}"
                ),
            )
        )
    with tf.control_dependencies(checks):
        images = tf.identity(images)
    return (images, *labels) if labels else images
