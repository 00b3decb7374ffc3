"""Inception-v3 against the code of others with the same random weights: pytorch-fid's and clean-fid's
(tests/goldens/README.md has the recipe) and Keras's; and the way to resize against Pillow."""

import json
import math
import os
import zlib

import h5py
import keras
import numpy as np
import pytest
from helpers.places import GOLDENS
from helpers.refusals import raises_in_flags
from keras.src.legacy.saving import legacy_h5_format
from PIL import Image

from kddpm.evaluation import features, inception


def weights(shapes):
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("conv.weight"):
            yield name, rng.normal(0, math.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        elif name.endswith(("bn.weight", "running_var")):
            yield name, rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            yield name, rng.normal(0, 0.1, shape).astype(np.float32)


def write_safetensors(path, arrays, **about):
    header, place, content = {"__metadata__": {"format": "pt"}}, 0, []
    for name, array in arrays:
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [place, place + array.nbytes]}
        header[name] |= about
        place += array.nbytes
        content.append(array.tobytes())
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(content))
    return path


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "pytorch_fid.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def path(golden, tmp_path_factory):
    shapes = json.loads(golden["shapes"].tobytes())
    return write_safetensors(tmp_path_factory.mktemp("inception") / "weights.safetensors", weights(shapes))


@pytest.mark.parametrize(
    ("name", "key", "variant"),
    [
        ("inception", "tf", "pytorch-fid"),
        ("inception_clean", "clean", "clean-fid"),
        ("inception_torchvision", "torchvision", "torchvision"),
    ],
)
def test_the_features_of_pytorch_fid(golden, path, name, key, variant):
    extractor = features.load(f"{name}:{path}", golden["images"].shape[1:])
    found, probabilities = extractor.features()(golden["images"])
    assert np.abs(found - golden[key]).max() <= 1e-3 and golden[key].std() > 1
    assert extractor.size == 2048 and probabilities.shape == (2, 0) and extractor.class_names == ()
    assert extractor.describe()["kind"] == f"Inception-v3, {variant}"


def resized_by_pillow(images):
    """As Parmar et al. 2022 have it: bicubic, each channel in float32, held in 0 .. 255, and scaled by 128."""

    def channel(values):
        image = Image.fromarray(values.astype(np.float32))
        return np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)

    resized = [np.stack([channel(image[..., c]) for c in range(image.shape[-1])], axis=-1) for image in images]
    return (np.stack(resized) - 128) / 128


@pytest.mark.parametrize("shape", [(24, 20, 3), (299, 299, 1), (310, 640, 3), (700, 30, 1)])
def test_clean_pictures_are_resized_as_pillow_does(shape):
    images = np.random.default_rng(0).choice(np.array([0, 20, 200, 255], np.uint8), (2, *shape))
    found = inception._bicubic(images).numpy()
    np.testing.assert_allclose(found, resized_by_pillow(images), atol=1e-4)


def test_grey_pictures_are_pictures_of_equal_channels(golden, path):
    network, grey = inception.load(path), golden["images"][:1, ..., :1]
    np.testing.assert_allclose(network(grey)[0], network(grey.repeat(3, axis=-1))[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (lambda path: path.write_bytes(b"\xff" * 100), "it is no safetensors file"),
        (lambda path: path.write_bytes(b"\x02" + bytes(7) + b"{"), "Expecting"),
        (lambda path: path.write_bytes(b"\x02" + bytes(7) + b"[]"), "its header must be an object of objects"),
        (lambda path: path.write_bytes(b"\x07" + bytes(7) + b'{"a":0}'), "its header must be an object of objects"),
        (lambda path: write_safetensors(path, [("a.conv.weight", np.zeros(1, "f4"))]), "it lacks 'a.bn.weight'"),
        (lambda path: write_safetensors(path, []), "it lacks 'Conv2d_1a_3x3'"),
        (lambda path: write_safetensors(path, [("a", np.zeros(3, "f4"))], dtype="I64"), "a must be F32 or F16"),
        (lambda path: write_safetensors(path, [("a", np.zeros(3, "f4"))], shape=[4]), "a lies outside the file"),
        (lambda path: os.truncate(write_safetensors(path, []), 2**31), "it has 2,147,483,648 bytes, and such weights"),
        (lambda path: write_safetensors(path, [("fc.weight", np.zeros((), "f4"))]), "it lacks 'Conv2d_1a_3x3'"),
        (lambda path: None, "No such file"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, text):
    content(tmp_path / "x.safetensors")
    with raises_in_flags(f"x.safetensors holds no weights of pytorch-fid's Inception-v3: .*{text}"):
        features.load(f"inception:{tmp_path / 'x.safetensors'}", (8, 8, 3))


@pytest.mark.parametrize(
    ("extractor", "name", "shape", "text"),
    [
        ("inception", "fc.weight", (1000, 2), "they are torchvision's, for inception_torchvision:FILE"),
        ("inception_clean", "AuxLogits.fc.weight", (3, 2), "they are torchvision's, for inception_torchvision:FILE"),
        ("inception_torchvision", "fc.weight", (1008, 2), "they are those of TensorFlow's first code for FID, for "),
    ],
)
def test_the_weights_of_another_variant_are_refused(tmp_path, extractor, name, shape, text):
    path = write_safetensors(tmp_path / "x.safetensors", [(name, np.zeros(shape, "f4"))])
    with raises_in_flags(f"x.safetensors holds no weights of pytorch-fid's Inception-v3: {text}"):
        features.load(f"{extractor}:{path}", (8, 8, 3))


# Keras's own.


@pytest.fixture(scope="module")
def of_keras(tmp_path_factory):
    """Keras's network with random weights, without and with a layer of classes, and its files."""
    keras.utils.set_random_seed(0)
    whole = keras.applications.InceptionV3(weights=None, classes=7)
    rng = np.random.default_rng(0)
    for layer in whole.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.beta.shape
            layer.set_weights([rng.normal(0, 0.1, shape), rng.normal(0, 0.1, shape), rng.uniform(0.5, 1.5, shape)])
    trunk = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(299, 299, 3), pooling="avg")
    trunk.set_weights(whole.get_weights()[:-2])
    folder = tmp_path_factory.mktemp("keras")
    trunk.save_weights(folder / "notop.weights.h5")
    whole.save_weights(folder / "top.weights.h5")
    with h5py.File(folder / "notop.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, trunk)
    return trunk, folder


@pytest.mark.parametrize(
    "name", ["notop.weights.h5", pytest.param("top.weights.h5", marks=pytest.mark.slow), "notop.h5"]
)
def test_the_features_of_keras(of_keras, golden, name):
    trunk, folder = of_keras
    images = golden["images"]
    extractor = features.load(f"inception_keras:{folder / name}", images.shape[1:])
    resized = keras.ops.image.resize(images.astype(np.float32), (299, 299), "bilinear")
    expected = trunk(keras.applications.inception_v3.preprocess_input(np.array(resized)), training=False)
    found, probabilities = extractor.features()(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.std(expected) > 0.01 and probabilities.shape == (2, 0) and extractor.size == found.shape[1]
    assert extractor.kind == "Inception-v3, keras"


def test_variants_and_layouts_that_do_not_go_together_are_refused(path, tmp_path):
    with raises_in_flags("--extractor must be a file in Keras's layout, .h5 or .weights.h5, for the variant keras"):
        features.load(f"inception_keras:{path}", (8, 8, 3))
    for name, variant in (("inception", "pytorch-fid"), ("inception_clean", "clean-fid")):
        with raises_in_flags(f"must be a file in pytorch-fid's layout, .safetensors, for the variant {variant}. Rece"):
            features.load(f"{name}:{tmp_path / 'x.weights.h5'}", (8, 8, 3))


def linked(path):
    with h5py.File(path, "w") as file:
        file["layers"] = h5py.ExternalLink("elsewhere.h5", "/layers")


def of_another(path):
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (linked, "layers is a link to somewhere else"),
        (of_another, ""),
        (lambda path: path.write_bytes(b"x" * 100), ""),
        (lambda path: None, "No such file"),
    ],
)
def test_other_files_than_keras_writes_are_refused(tmp_path, content, text):
    content(tmp_path / "x.weights.h5")
    with raises_in_flags(f"x.weights.h5 holds no weights of Keras's InceptionV3: .*{text}"):
        features.load(f"inception_keras:{tmp_path / 'x.weights.h5'}", (8, 8, 3))
