"""Inception-v3 (Szegedy et al. 2016), whose 2,048 features FID is measured in, with weights of a file of the user's.

Each variant gives other numbers for the same pictures:

| variant | weights | resized to 299x299 | scaled | average pooling counts its padding | last pooling branch |
|---|---|---|---|---|---|
| `pytorch-fid`, after the first code for FID | of pytorch-fid | bilinear | x / 127.5 - 1 | no | maximum |
| `clean-fid` (Parmar et al. 2022) | of pytorch-fid | bicubic, antialiased | (x - 128) / 128 | no | maximum |
| `torchvision` | of torchvision | bilinear | x / 127.5 - 1 | yes | average |
| `keras` | of keras.applications | bilinear | x / 127.5 - 1 | no | average |

Bilinear is with half-pixel centres and without antialiasing. Bicubic is Pillow's, of each channel in float32, without
rounding but held in 0 .. 255. Grey pictures are repeated in three channels.

Files of the first three are in the layout of pytorch-fid, as safetensors: NAME.conv.weight, NAME.bn.weight,
NAME.bn.bias, NAME.bn.running_mean and NAME.bn.running_var of every convolution. Those of `keras` are its own, .h5 or
.weights.h5, with or without the layer of classes.
"""

import json
import math
import os
import warnings
from collections.abc import Callable

import h5py
import keras
import numpy as np
import tensorflow as tf

from kddpm.base import hdf5, settings
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import check_regular, expand
from kddpm.base.types import Tensor

SIZE = 2048  # features
VARIANTS = ("pytorch-fid", "clean-fid", "torchvision", "keras")
_SIDE = 299
_EPSILON = 1e-3  # of the batch normalisation
_MOST_HEADER_BYTES = 2**22
_DTYPES = {"F32": "<f4", "F16": "<f2"}
_MOST_BYTES = 4 * 32_000_000  # of weights, with a layer of 1,000 classes and torchvision's auxiliary one
_KERAS_SUFFIXES = (".h5", ".hdf5")


def load(path: str | os.PathLike, variant: str = "pytorch-fid") -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the network of a file of weights.

    Args:
        path: a .safetensors file; of `keras` an .h5 file.
        variant: of the table in the module's docstring.

    Returns:
        A function from uint8 (B, H, W, 1 or 3) to features (B, 2048) and logits (B, 0).

    Raises:
        InputError: an unknown variant, a file of another's layout, or one that is missing, damaged or lacks weights.
    """
    if variant not in VARIANTS:
        raise InputError("variant", f"must be one of {', '.join(VARIANTS)}", repr(variant))
    is_keras = variant == "keras"
    if os.fspath(path).endswith(_KERAS_SUFFIXES) != is_keras:
        layouts = "Keras's layout, .h5 or .weights.h5" if is_keras else "pytorch-fid's layout, .safetensors"
        raise InputError("extractor", f"must be a file in {layouts}, for the variant {variant}", path)
    owner = "Keras's InceptionV3" if is_keras else "pytorch-fid's Inception-v3"
    try:
        network = _of_keras(path) if is_keras else _Inception(read_safetensors(path), variant)
        traced = tf.function(network, autograph=False)
        traced.get_concrete_function(tf.TensorSpec((1, 8, 8, 3), tf.uint8))  # finds what is missing or misshapen
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError("extractor", f"{path} holds no weights of {owner}: {text}") from None
    return network


def _of_keras(path: str | os.PathLike) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the network of keras.applications, without its layer of classes."""
    path = expand(path)
    check_regular(path)
    hdf5.check_content(path, _MOST_BYTES)
    classes = _classes(path)
    with settings.keras_defaults():
        whole = keras.applications.InceptionV3(
            weights=None,
            include_top=classes is not None,
            classes=classes or 1000,
            input_shape=(_SIDE, _SIDE, 3),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # all that Keras says of layers that the file lacks
        whole.load_weights(path)
    trunk = keras.Model(whole.input, whole.get_layer("mixed10").output)

    def network(images):
        features = tf.reduce_mean(trunk(_in_colour(_bilinear(images)), training=False), axis=(1, 2))
        return features, features[:, :0]

    return network


def _classes(path: str) -> int | None:
    """Return the number of classes of Keras's file, None = it has no layer of them."""
    shapes: list[tuple[int, ...]] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: shapes.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    return next((shape[1] for shape in shapes if len(shape) == 2 and shape[0] == SIZE), None)


def _bilinear(images: Tensor) -> Tensor:
    return 2 * tf.image.resize(tf.cast(images, tf.float32) / 255, (_SIDE, _SIDE)) - 1


def _bicubic(images: Tensor) -> Tensor:
    """Resize and scale as clean-fid does."""
    x = tf.image.resize(tf.cast(images, tf.float32), (_SIDE, _SIDE), "bicubic", antialias=True)
    return (tf.clip_by_value(x, 0, 255) - 128) / 128


def _in_colour(x: Tensor) -> Tensor:
    return tf.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, float32.

    Raises:
        OSError or ValueError: the file is missing or damaged, or holds arrays of another type than F32 and F16.
    """
    path = expand(path)
    check_regular(path)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MOST_HEADER_BYTES:
            raise ValueError("it is no safetensors file")
        header = json.loads(file.read(size))
        if not isinstance(header, dict) or not all(isinstance(about, dict) for about in header.values()):
            raise ValueError("its header must be an object of objects")
        if (length := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
            raise ValueError(f"it has {length:,} bytes, and such weights fewer than {_MOST_BYTES:,}")
        data = np.fromfile(file, np.uint8)
    arrays = {}
    for name, about in header.items():
        if name == "__metadata__" or name.endswith("num_batches_tracked"):
            continue
        dtype, shape, (first, last) = _DTYPES.get(about["dtype"]), about["shape"], about["data_offsets"]
        if dtype is None or not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
            raise ValueError(f"{name} must be F32 or F16. Received: {about!r:.80}")
        if not first <= last <= len(data) or last - first != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{name} lies outside the file")
        arrays[name] = data[first:last].view(dtype).reshape(shape).astype(np.float32)
    return arrays


class _Inception:
    """The layers by their names in the file; batch normalisation is folded into the convolutions."""

    def __init__(self, arrays: dict[str, np.ndarray], variant: str):
        self._is_tf = variant != "torchvision"  # as TensorFlow's first code for FID pools
        # The same names, and other weights: what lies beside those that are needed tells whose they are.
        classes = arrays["fc.weight"].shape[:1] if "fc.weight" in arrays else None
        if self._is_tf and (classes == (1000,) or any(key.startswith("AuxLogits") for key in arrays)):
            raise ValueError("they are torchvision's, for inception_torchvision:FILE")
        if not self._is_tf and classes == (1008,):
            raise ValueError("they are those of TensorFlow's first code for FID, for inception:FILE")
        self._prepare = _bicubic if variant == "clean-fid" else _bilinear
        self._kernels, self._biases = {}, {}
        for key in arrays:
            if key.endswith(".conv.weight") and not key.startswith("AuxLogits"):
                name = key.removesuffix(".conv.weight")
                scale, shift, mean, variance = (
                    arrays[f"{name}.bn.{part}"].astype(np.float64)
                    for part in ("weight", "bias", "running_mean", "running_var")
                )
                scale = scale / np.sqrt(variance + _EPSILON)
                kernel = arrays[key].transpose(2, 3, 1, 0) * scale
                self._kernels[name] = tf.Variable(kernel.astype(np.float32), trainable=False)
                self._biases[name] = tf.Variable((shift - mean * scale).astype(np.float32), trainable=False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = _in_colour(self._prepare(images))
        x = self._chain(x, "", "Conv2d_1a_3x3/2", "Conv2d_2a_3x3/1", "Conv2d_2b_3x3")
        x = self._chain(_max_pool(x), "", "Conv2d_3b_1x1", "Conv2d_4a_3x3/1")
        x = _max_pool(x)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self._join(x, name, [["branch1x1"], _numbered("branch5x5", 2), _numbered("branch3x3dbl", 3)])
        x = self._shrink(x, "Mixed_6a", [["branch3x3/2"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3/2"]])
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self._join(x, name, [["branch1x1"], _numbered("branch7x7", 3), _numbered("branch7x7dbl", 5)])
        deep = [*_numbered("branch7x7x3", 3), "branch7x7x3_4/2"]
        x = self._shrink(x, "Mixed_7a", [["branch3x3_1", "branch3x3_2/2"], deep])
        x = self._last(x, "Mixed_7b", is_max=False)
        x = self._last(x, "Mixed_7c", is_max=self._is_tf)
        features = tf.reduce_mean(x, axis=(1, 2))
        return features, features[:, :0]

    def _chain(self, x, block, *names):
        """Convolve and rectify, one after another; NAME/S has stride S and no padding."""
        for name in names:
            name, _, stride = f"{block}{name}".partition("/")
            x = tf.nn.conv2d(x, self._kernels[name], int(stride or 1), "VALID" if stride else "SAME")
            x = tf.nn.relu(x + self._biases[name])
        return x

    def _join(self, x, block, branches):
        return tf.concat([*(self._chain(x, f"{block}.", *b) for b in branches), self._pooled(x, block, False)], -1)

    def _shrink(self, x, block, branches):
        return tf.concat([*(self._chain(x, f"{block}.", *branch) for branch in branches), _max_pool(x)], axis=-1)

    def _last(self, x, block, is_max):
        def fork(y, name):
            return [self._chain(y, f"{block}.", f"{name}{side}") for side in ("a", "b")]

        one = self._chain(x, f"{block}.", "branch1x1")
        two = fork(self._chain(x, f"{block}.", "branch3x3_1"), "branch3x3_2")
        three = fork(self._chain(x, f"{block}.", "branch3x3dbl_1", "branch3x3dbl_2"), "branch3x3dbl_3")
        return tf.concat([one, *two, *three, self._pooled(x, block, is_max)], axis=-1)

    def _pooled(self, x, block, is_max):
        if is_max:
            x = tf.nn.max_pool2d(x, 3, 1, "SAME")
        elif self._is_tf:
            x = tf.nn.avg_pool2d(x, 3, 1, "SAME")  # TensorFlow's does not count the padding
        else:
            x = tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 1, "VALID")
        return self._chain(x, f"{block}.", "branch_pool")


def _numbered(name, count):
    return [f"{name}_{i}" for i in range(1, count + 1)]


def _max_pool(x):
    return tf.nn.max_pool2d(x, 3, 2, "VALID")
