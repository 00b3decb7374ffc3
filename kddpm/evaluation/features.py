"""Extractors, networks whose features judge pictures, and the features of many pictures, a batch at a time.

| name | what it is |
|---|---|
| `digits`, `mnist` | small classifiers that come with the package (`kddpm/assets/README.md` says how good they are) |
| `inception:FILE` | Inception-v3 as in pytorch-fid, with weights of yours (`inception`) |
| `inception_clean:FILE`, `inception_torchvision:FILE`, `inception_keras:FILE` | the other variants of it |
| `NAME` | one that `python -m kddpm.evaluation.extractor --out=NAME` trained |
"""

import dataclasses
import importlib.resources
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.base.files import expand, sha256
from kddpm.evaluation import SHIPPED, classifier, inception
from kddpm.evaluation.batches import on_replicas

# {prefix: variant}
_INCEPTIONS = {
    "inception": "pytorch-fid",
    "inception_clean": "clean-fid",
    "inception_torchvision": "torchvision",
    "inception_keras": "keras",
}


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network whose features judge pictures.

    Attributes:
        name: as the user named it.
        kind: which network it is, and which variant.
        sha256: digest of its weights, after the variant if there are several.
        image_shape: height, width, channels.
        class_names: of its classes; () = it knows none.
        network: a function or model from uint8 (B, H, W, C) to features (B, D) and logits (B, classes).
        size: D.
        accuracy: share of held-out images that it names right; None = unknown.
        strategy: of the devices that hold its weights.
    """

    name: str
    kind: str
    sha256: str
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    network: Callable
    size: int
    accuracy: float | None = None
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)

    def features(self) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
        """Return a compiled function from uint8 (B, H, W, C) to features (B, D) and probabilities (B, classes).

        The replicas of the strategy share the rows; both are float32.
        """

        def of(images):
            features, logits = self.network(images)
            return tf.cast(features, tf.float32), tf.nn.softmax(tf.cast(logits, tf.float32))

        signature = [tf.TensorSpec((None, *self.image_shape), tf.uint8)]
        return on_replicas(self.strategy, of, signature, scalars=0)

    def describe(self) -> dict:
        """Return what results say of the extractor."""
        names = ("name", "kind", "sha256", "size", "accuracy")
        return {name: getattr(self, name) for name in names}


def load(name: str | os.PathLike, image_shape: tuple[int, int, int]) -> Extractor:
    """Load an extractor.

    Args:
        name: of the table in the module's docstring.
        image_shape: height, width, channels of the pictures to judge.

    Raises:
        InputError: no such extractor, a damaged file, or one for pictures of another shape.
    """
    name = os.fspath(name)
    prefix, _, path = name.partition(":")
    if path and prefix in _INCEPTIONS:
        path, variant = expand(path), _INCEPTIONS[prefix]
        network = inception.load(path, variant)
        kind = f"Inception-v3, {variant}"
        return Extractor(name, kind, f"{variant} {sha256(path)}", tuple(image_shape), (), network, inception.SIZE)
    trained, about = classifier.load(_asset(name) if name in SHIPPED else name)
    shape = tuple(about.image_shape)
    if shape != tuple(image_shape):
        raise InputError("extractor", f"must be for pictures of {_size(image_shape)}", f"{name}, for {_size(shape)}")
    return Extractor(
        name,
        "classifier",
        about.sha256,
        shape,
        tuple(about.class_names),
        _of_classifier(trained),
        classifier.FEATURES,
        about.accuracy,
    )


def default(spec: str, digests: set[str], image_shape: tuple[int, int, int]) -> str:
    """Return the name of the shipped extractor that fits a data set.

    Args:
        spec: of the data set.
        digests: of the data sets that it may have been trained on.
        image_shape: height, width, channels of the pictures to judge.

    Raises:
        InputError: there is none.
    """
    for name in SHIPPED:
        about = classifier.read_about(f"{_asset(name)}.json")
        if {spec, *digests} & set(about.data_sets) and tuple(about.image_shape) == tuple(image_shape):
            return name
    raise InputError(
        "extractor",
        f"is needed: those that come with kddpm, {' and '.join(SHIPPED)}, know other pictures. Train one with "
        "`python -m kddpm.evaluation.extractor --dataset=... --out=NAME`",
        f"{spec} in {_size(image_shape)}",
    )


def _asset(name):
    return str(importlib.resources.files("kddpm") / "assets" / f"extractor_{name}")


def _of_classifier(network: keras.Model):
    return lambda images: network(classifier.as_inputs(images), training=False)


def _size(shape):
    height, width, channels = shape
    return f"{width}x{height}, {'grey' if channels == 1 else 'RGB'}"
