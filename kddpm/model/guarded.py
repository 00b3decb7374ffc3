"""`GuardedModel`: Keras's `fit`, `evaluate` and the like, with checks of what they are given."""

import warnings
from typing import Any

import keras

from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.data import inputs

_MOST_SKIPPED = 10  # steps in a row


class GuardedModel(keras.Model):
    """A Keras model of images whose methods check images and labels, from every kind of source, in `inputs.Guard`.

    The base of `DiffusionModel`, which has the attributes and the steps that this needs.
    """

    _replica_batch: int | None = None  # images of a training batch on each replica, if there are several

    def fit(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, epochs: int = 1, **kwargs
    ) -> keras.callbacks.History:
        """Train with Keras's `fit`, after a check of the images.

        A step whose loss or gradients are not finite is skipped, and counted in `skipped_steps`.

        Raises:
            InputError: images of another shape or type, outside [-1, 1] or NaN; labels missing or out of range; ten
                skipped steps in a row.
        """
        refuse_weights(**kwargs)
        replicas, is_array = self.distribute_strategy.num_replicas_in_sync, hasattr(x, "shape")
        if replicas > 1 and kwargs.get("validation_split"):
            raise InputError("validation_split", f"is for one device; with {replicas} replicas pass `validation_data`")
        with self._guard() as guard:
            if kwargs.get("validation_data") is not None:
                images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(kwargs["validation_data"])
                refuse_weights(sample_weight=sample_weight)
                kwargs["validation_data"] = guard.source(images, labels)
            if replicas > 1 and not is_array:
                inputs.size_of_batches(x, replicas)  # refuses other sources before a batch is read
            x, y = guard.source(x, y)
            if replicas > 1:
                if is_array:
                    seed = self.seed + int(self.step.numpy())  # the same on every worker
                    x = inputs.shareable_batches(x, y, batch_size or 32, kwargs.pop("shuffle", True), seed)
                    y = batch_size = None
                self._set_replica_batch(inputs.size_of_batches(x, replicas) // replicas)
            if not hasattr(x, "shape") and not isinstance(x, keras.utils.PyDataset):
                kwargs.setdefault("shuffle", False)  # it has its own order, and Keras warns about the default
            if self.jit_compile and is_array and replicas == 1 and len(x) % (batch_size or 32):
                warnings.warn(
                    f"{len(x)} images are not a multiple of batch_size={batch_size or 32}: XLA compiles the training "
                    "step a second time for the smaller last batch",
                    stacklevel=2,
                )
            callbacks = _with_watch(kwargs.pop("callbacks", None), guard)
            return super().fit(x, y, batch_size=batch_size, epochs=epochs, callbacks=callbacks, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs) -> Any:
        """Return the loss under the averaged weights, by Keras's `evaluate`.

        The same images in the same order give the same number, to rounding, in batches of any size, from every source,
        on any number of replicas: the noise of image k and its t depend on the model's seed and on k.

        Raises:
            InputError: as in `fit`.
        """
        refuse_weights(**kwargs)
        with self._guard() as guard:
            if not kwargs.get("_use_cached_eval_dataset"):  # `fit` evaluates, on what it has checked
                x, y = guard.source(x, y)
            callbacks = _with_watch(kwargs.pop("callbacks", None), guard)
            return super().evaluate(x, y, batch_size=batch_size, callbacks=callbacks, **kwargs)

    def train_on_batch(self, x: Tensor, y: Tensor = None, *args, **kwargs) -> Any:
        """Take one step on a batch, by Keras's `train_on_batch`.

        Raises:
            InputError: as in `fit`.
        """
        return super().train_on_batch(*self._batch_guard("training").source(x, y), *args, **kwargs)

    def test_on_batch(self, x: Tensor, y: Tensor = None, *args, **kwargs) -> Any:
        """Return the loss of a batch under the averaged weights, as `evaluate` does for these images.

        Raises:
            InputError: as in `fit`.
        """
        return super().test_on_batch(*self._batch_guard("evaluation").source(x, y), *args, **kwargs)

    def __call__(self, inputs: Any, *args, **kwargs) -> Any:
        """Return the network's prediction, as `predict` does.

        Raises:
            InputError: the inputs are not [x_t, t] or [x_t, t, label].
        """
        expected = ["x_t", "t", "label"][: 3 if self.network.num_classes else 2]
        if not isinstance(inputs, list | tuple) or len(inputs) != len(expected):
            raise InputError(
                f"The model is called on [{', '.join(expected)}]. `generate(seeds)` returns pictures, "
                "`evaluate(images)` their loss",
                received=f"{len(inputs)} inputs" if isinstance(inputs, list | tuple) else type(inputs).__name__,
            )
        return super().__call__(inputs, *args, **kwargs)

    def _guard(self):
        return inputs.Guard(self.image_shape, self.network.num_classes)

    def _batch_guard(self, purpose):
        """Return the guard of all single batches of one purpose, which doubts their scale only once."""
        return self._batch_guards.setdefault(purpose, self._guard())

    def _set_replica_batch(self, replica_batch):
        """Trace training for this many images per replica: batches of several workers have no static size."""
        if replica_batch != self._replica_batch:
            self._replica_batch, self.train_function = replica_batch, None


class _Watch(keras.callbacks.Callback):
    """Warns of what the guard doubts, and ends training on invalid batches or after too many skipped steps in a row."""

    def __init__(self, guard):
        super().__init__()
        self._guard = guard

    def on_train_batch_end(self, batch, logs=None):
        self._guard.warn()
        if (batch + 1) % _MOST_SKIPPED == 0:  # not at every step: reading a variable waits for the accelerator
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        self._guard.warn(at_end=True)
        self._check()

    def on_test_end(self, logs=None):
        self._guard.warn(at_end=True)
        self.model.check_valid()

    def _check(self):
        self.model.check_valid()
        self.model.check_not_lost(_MOST_SKIPPED)


def _with_watch(callbacks, guard):
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    return [*keras.tree.flatten(callbacks or []), _Watch(guard)]


def refuse_weights(sample_weight: Any = None, class_weight: Any = None, **_) -> None:
    """Check that no weights of images or classes are given.

    Raises:
        InputError: some are.
    """
    for name, weights in (("sample_weight", sample_weight), ("class_weight", class_weight)):
        if weights is not None:
            raise InputError(name, "is not supported: every image counts the same")
