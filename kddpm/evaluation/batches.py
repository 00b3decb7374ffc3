"""Images whose bits are counted: each with a seed and a label, taken a batch at a time on every replica."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Integers
from kddpm.data import inputs
from kddpm.distribution import replicas
from kddpm.networks import fused
from kddpm.sampling.denoiser import Denoiser


class Batches:
    """Checked images.

    Args:
        denoiser: the network that judges them.
        images: uint8 (N, H, W, C).
        labels: int (N,), None for a network without classes.
        seed: int32; image k has the seed `seed` + k.
        batch_size: images at a time.

    Attributes:
        count: N.
        size: the number of images in the largest batch.

    Raises:
        InputError: images that are not uint8, none, or of another shape; labels that do not fit; a seed that does not
            fit int32.
    """

    def __init__(
        self, denoiser: Denoiser, images: np.ndarray, labels: Integers | None, seed: int, batch_size: int
    ) -> None:
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise InputError("images", "must be exact uint8 for bits per dimension", images.dtype)
        if not len(images):
            raise InputError("images", "must be at least one", "none")
        inputs.check_arrays(images, None, denoiser.image_shape, None)
        self.count = len(images)
        self.size = min(arguments.count("batch_size", batch_size), self.count)
        labels = denoiser.labels_of_images(labels, self.count)
        arguments.int32("seed", [seed])
        self._images = images
        self._labels = np.zeros(self.count, np.int32) if labels is None else labels  # not used
        self._seeds = arguments.int32("seed", np.arange(self.count) + seed)

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, self.count, self.size):
            yield self._rows(slice(first, first + self.size))

    def first(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the first image as a batch of its own: x_0 in [-1, 1], float64 (1, H, W, C), seed and label (1,)."""
        return self._rows(slice(1))

    def _rows(self, rows):
        return self._images[rows].astype(np.float64) / 127.5 - 1, self._seeds[rows], self._labels[rows]


def signature_of(denoiser: Denoiser) -> list[tf.TensorSpec]:
    """Return the signature of what `Batches` gives: x_0, seeds and labels."""
    vector = tf.TensorSpec((None,), tf.int32)
    return [tf.TensorSpec((None, *denoiser.image_shape), tf.float64), vector, vector]


def on_replicas(
    strategy: tf.distribute.Strategy, function: Callable, arrays: Sequence[tf.TensorSpec], scalars: int
) -> Callable[..., tuple[np.ndarray, ...]]:
    """Compile a function of arrays (B, ...), whose rows the replicas share, and of int32 scalars.

    Args:
        strategy: of the network that the function calls.
        function: (*arrays, *scalars) -> tuple of tensors (B, ...).
        arrays: signature of the arrays.
        scalars: number of scalars.

    Returns:
        A function of NumPy arrays and numbers that returns NumPy arrays.
    """
    rows = replicas.SharedRows(strategy)
    signature = [*arrays, *[tf.TensorSpec((), tf.int32)] * scalars]

    def on_each(*given):
        with fused.allowed():
            return function(*given)

    compiled = rows.compile(on_each, input_signature=signature)

    def compute(*given):
        count = len(given[0])
        size = rows.full(count)
        shared = [rows.share(np.resize(array, (size, *array.shape[1:]))) for array in given[: len(arrays)]]
        results = compiled(*shared, *(tf.constant(number, tf.int32) for number in given[len(arrays) :]))
        return tuple(rows.join(result)[:count].numpy() for result in results)

    return compute
