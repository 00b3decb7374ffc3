"""Inception-v3 against pytorch-fid's code with the same random weights (tests/goldens/README.md has the recipe)."""

import json
import math
import zlib

import numpy as np
import pytest
from helpers.places import GOLDENS
from helpers.refusals import raises_in_flags

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


@pytest.mark.parametrize(("name", "variant"), [("inception", "tf"), ("inception_torchvision", "torchvision")])
def test_the_features_of_pytorch_fid(golden, path, name, variant):
    extractor = features.load(f"{name}:{path}", golden["images"].shape[1:])
    found, probabilities = extractor.features()(golden["images"])
    assert np.abs(found - golden[variant]).max() <= 1e-3 and golden[variant].std() > 1
    assert extractor.size == 2048 and probabilities.shape == (2, 0) and extractor.class_names == ()
    assert extractor.kind == f"Inception-v3, {variant}"


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
        (lambda path: None, "No such file"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, text):
    content(tmp_path / "x.safetensors")
    with raises_in_flags(f"x.safetensors holds no weights of pytorch-fid's Inception-v3: .*{text}"):
        features.load(f"inception:{tmp_path / 'x.safetensors'}", (8, 8, 3))
