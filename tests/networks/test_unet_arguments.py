"""Arguments of a U-Net: NumPy's numbers are numbers, and what cannot be meant is refused."""

import json

import numpy as np
import pytest

import kddpm
from kddpm.base.errors import InputError
from kddpm.networks import layers

NUMPYS = {
    "image_shape": np.array([8, 8, 1]),
    "width": np.int64(8),
    "multipliers": (np.int32(1), np.uint8(2)),
    "blocks_per_level": np.int16(1),
    "attention_resolutions": np.array([4]),
    "dropout": np.float32(0.25),
    "num_classes": np.int64(3),
    "groups": np.int64(4),
    "out_channels": np.int64(2),
}


def test_numpys_numbers_are_numbers(make_unet):
    unet = kddpm.UNet(**NUMPYS)
    config = json.loads(json.dumps(unet.get_config()))
    plain = {name: np.asarray(value).tolist() for name, value in NUMPYS.items()}
    assert {name: config[name] for name in NUMPYS} == plain
    assert kddpm.UNet.from_config(config).count_params() == unet.count_params() == kddpm.UNet(**plain).count_params()


def test_numpys_numbers_in_a_configuration():
    config = kddpm.TrainConfig("digits", np.array([8, 8]), width=np.int64(16), multipliers=[np.int64(1), np.int8(2)],
                               attention_resolutions=(np.int64(4),), learning_rate=np.float32(0.5))  # fmt: skip
    kept = json.loads(json.dumps(vars(config)))
    assert (kept["image_size"], kept["width"], kept["multipliers"], kept["learning_rate"]) == ([8, 8], 16, [1, 2], 0.5)
    assert kept["attention_resolutions"] == [4]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("attention_resolutions", (16,), r"must be among 8, 4, the sizes of the levels \(.*\). Received: 16"),
        ("attention_resolutions", (4, 5), r"must be among 8, 4, .* Received: 4,5"),
        ("attention_resolutions", (4.0,), r"must be a list of integers of at least 1. Received: \(4.0,\)"),
        ("attention_resolutions", 4, "must be a list of integers of at least 1. Received: 4"),
        ("multipliers", (1, 1.5), r"must be a list of integers of at least 1. Received: \(1, 1.5\)"),
        ("multipliers", (1, 0), r"must be a list of integers of at least 1. Received: \(1, 0\)"),
        ("multipliers", (1, True), r"must be a list of integers of at least 1. Received: \(1, True\)"),
        ("multipliers", 2, "must be a list of integers of at least 1. Received: 2"),
        ("multipliers", np.array(2), r"must be a list of integers of at least 1. Received: array\(2\)"),
        ("multipliers", "12", "must be a list of integers of at least 1. Received: '12'"),
        ("multipliers", (), "must be at least one. Received: none"),
        ("width", 8.0, "must be an integer of at least 1. Received: 8.0"),
        ("width", 0, "must be an integer of at least 1. Received: 0"),
        ("width", "8", "must be an integer of at least 1. Received: '8'"),
        ("blocks_per_level", 0, "must be an integer of at least 1. Received: 0"),
        ("num_classes", 0, "must be an integer of at least 1. Received: 0"),
        ("num_classes", True, "must be an integer of at least 1. Received: True"),
        ("out_channels", 1.5, "must be an integer of at least 1. Received: 1.5"),
        ("groups", 0, "must be an integer of at least 1. Received: 0"),
        ("groups", 3, "must divide the channels. Received: groups=3, channels=8"),
        ("dropout", "0.1", "must be a number. Received: '0.1'"),
        ("dropout", 1, r"must lie in \[0, 1\). Received: 1"),
        ("image_shape", 8, r"must be \(height, width, channels\). Received: 8"),
        ("image_shape", (8, 8, True), r"must be \(height, width, channels\). Received: \(8, 8, True\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(make_unet, name, value, text):
    with pytest.raises(InputError, match=rf"`{name}` {text}"):
        make_unet(**{name: value})


def test_attention_at_the_papers_size_is_the_default_where_there_is_such_a_level():
    sizes = {
        image_shape: kddpm.UNet(image_shape, 8, (1, 2), 1).attention_resolutions
        for image_shape in ((28, 28, 1), (32, 32, 1), (16, 8, 1))
    }
    assert sizes == {(28, 28, 1): (), (32, 32, 1): (16,), (16, 8, 1): (16,)}
    assert kddpm.UNet((8, 8, 1), 8, (1, 2), 1, (4, 8, 4)).attention_resolutions == (4, 8)


def test_files_that_list_attention_at_the_size_of_no_level_still_load(make_unet):
    config = make_unet().get_config()
    unet = kddpm.UNet.from_config({**config, "attention_resolutions": (4, 16)})
    assert unet.get_config() == config


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: layers.TimestepEmbedding(8.5), "`width` must be an integer of at least 1. Received: 8.5"),
        (lambda: layers.GroupNormalization(0), "`groups` must be an integer of at least 1. Received: 0"),
        (lambda: layers.AttentionBlock("4"), "`groups` must be an integer of at least 1. Received: '4'"),
        (lambda: layers.ResidualBlock(None), "`channels` must be an integer of at least 1. Received: None"),
    ],
)
def test_arguments_of_layers(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_a_star_brings_public_names_only():
    names = {}
    exec("from kddpm import *", names)
    assert set(names) - {"__builtins__"} == set(kddpm.__all__) == {*dir(kddpm), "__version__"}
    modules = {name for name, value in names.items() if type(value) is type(json) and name != "__builtins__"}
    assert all(names[name].__name__.startswith("kddpm.") for name in modules)
