"""The contract: which signatures a file has, and what they do at the borders of their inputs."""

import base64
import hashlib
import io
import json

import numpy as np
import pytest
from helpers.networks import OneConv, one_conv_model
from PIL import Image

import kddpm
from kddpm import device
from kddpm.device import litert, parity
from kddpm.sampling import noise

QUICK = {"num_steps": 4, "parity_seeds": 2, "verbose": False}
HUGE = [np.nan, np.inf, -np.inf, 3e38, -3e38]


def number(value):
    return np.array([value], np.int32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model with classes, its file with all signatures, and the description of it."""
    path = tmp_path_factory.mktemp("whole") / "m.tflite"
    model = one_conv_model({"num_classes": 3})
    about = model.export(path, **QUICK)
    return model, litert.load(path.read_bytes()), about, path


@pytest.mark.parametrize("names", [["generate"], ["step", "start"], ["noise", "denoise"], ["denoise"]])
def test_a_file_has_the_signatures_that_were_chosen(names, tmp_path):
    path = tmp_path / "m.tflite"
    about = one_conv_model().export(path, signatures=names, **QUICK)
    assert list(about["signatures"]) == [name for name in device.SIGNATURES if name in names]
    assert set(litert.load(path.read_bytes())) == set(names)
    assert about["delegation"]["signature"] == next(name for name in ("step", "denoise", "generate") if name in names)
    assert about["latency_ms"]["picture"] > 0 and about["parity"]["max_grey_levels"] <= 1
    assert (about["parity"]["noise_identical"] is None) == (names in (["generate"], ["denoise"]))
    assert json.loads(path.with_suffix(".json").read_text()) == about


# The builtin operators of TensorFlow Lite Micro that a network may have.
MICRO = frozenset(
    "ABS ADD ADD_N ARG_MAX AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CAST CEIL CONCATENATION CONV_2D COS CUMSUM "
    "DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP EXPAND_DIMS FILL FLOOR FULLY_CONNECTED GATHER "
    "GREATER LEAKY_RELU LESS LOG LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG PACK PAD PADV2 QUANTIZE RELU RELU6 "
    "RESHAPE ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE "
    "SQUEEZE STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV UNPACK".split()
)


def test_denoise_alone_has_no_operator_that_microcontrollers_lack(trained_like, tmp_path):
    """Without classes, whose look-up has a SELECT."""
    about = trained_like.export(tmp_path / "m.tflite", signatures=["denoise"], precision="int8", **QUICK)
    assert set(about["operators"]) <= MICRO and "CONV_2D" in about["operators"]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (
            ["start", "finish"],
            "`signatures` must hold one that calls the network, of step, denoise, generate. Received: ",
        ),
        (["denoise", "serve"], "`signatures` must be of generate, start, .*noise. Received: 'serve'"),
        ([], "`signatures` must hold one that calls the network"),
        ("noise", "`signatures` must hold one that calls the network"),
    ],
)
def test_other_choices_are_refused(names, error, tmp_path):
    with pytest.raises(kddpm.InputError, match=error):
        one_conv_model().export(tmp_path / "m.tflite", signatures=names, **QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", [0, 1, 2, 3, 77])
def test_noise_has_the_bits_of_every_stream(whole, stream):
    run = whole[1]
    drawn = run["noise"](seed=number(-5), stream=number(stream), index=number(3))["noise"]
    assert drawn.tobytes() == noise.normal(number(-5), stream, 3, (8, 8, 2)).numpy().tobytes()


@pytest.mark.parametrize("xnnpack", [True, False])
def test_an_image_lies_in_0_to_255_whatever_comes_in(whole, xnnpack):
    run = litert.load(whole[3].read_bytes(), xnnpack=xnnpack)
    for value in HUGE:
        x = np.full((1, 8, 8, 2), value, np.float32)
        for state in (x, run["step"](x=x, index=number(0), seed=number(0), label=number(0))["x"]):
            image = run["finish"](x=state)["image"]
            assert image.min() >= 0 and image.max() <= 255


def test_what_lies_outside_is_taken_as_the_nearest(whole):
    model, run, about, _ = whole
    x = run["start"](seed=number(3))["x"]
    last_t, last_row, no_class = model.schedule.num_timesteps - 1, about["network_calls"] - 1, model.network.num_classes
    inputs = {"index": number(1), "seed": number(3), "label": number(1)}
    for name, low, high in (("index", 0, last_row), ("label", 0, no_class)):
        for far, near in ((-1, low), (-(2**31), low), (high + 1, high), (2**31 - 1, high)):
            of = [run["step"](x=x, **{**inputs, name: number(value)})["x"] for value in (far, near)]
            np.testing.assert_array_equal(*of)
    for far, near in ((-7, 0), (last_t + 1, last_t), (2**31 - 1, last_t)):
        of = [run["denoise"](x=x, t=number(t), label=number(1))["x0"] for t in (far, near)]
        np.testing.assert_array_equal(*of)
    of_none = run["denoise"](x=x, t=number(2), label=number(no_class))["eps"]
    np.testing.assert_allclose(of_none, model.ema_network([x, number(2), number(no_class)]), atol=1e-5)


def test_the_description_has_the_schedule_and_pictures_to_compare_with(whole):
    model, about = whole[0], whole[2]
    assert about["schedule"] == {"timesteps": None, "alpha_bars": model.schedule.alpha_bars.tolist()}
    assert len(about["vectors"]) == 2
    for vector in about["vectors"]:
        seed, label = number(vector["seed"]), [vector["label"]]
        drawn = noise.normal(seed, noise.INITIAL_STREAM, 0, (8, 8, 2)).numpy()
        assert vector["noise_sha256"] == hashlib.sha256(drawn.tobytes()).hexdigest()
        picture = model.generate(seed, "ancestral", 4, labels=label)
        assert vector["picture_sha256"] == hashlib.sha256(picture.tobytes()).hexdigest()
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(vector["picture"]))))
        np.testing.assert_array_equal(shown, picture[0])


def test_a_respaced_schedule_lists_its_timesteps(tmp_path):
    model = kddpm.DiffusionModel(OneConv((8, 8, 2), num_timesteps=20), kddpm.schedules.linear(20).respace([4, 9, 19]))
    about = model.export(tmp_path / "m.tflite", **{**QUICK, "num_steps": 3})
    assert about["schedule"]["timesteps"] == [4, 9, 19] and about["steps"]["t"] == [19, 9, 4]
    assert about["parity"]["max_grey_levels"] <= 1


def test_a_client_walks_by_denoise_as_keras_does(whole):
    model, run, about, _ = whole
    batch = {"seed": number(9), "label": number(2)}
    walked = parity.walked_by_client(run["noise"], run["denoise"], about["steps"], batch)
    assert np.abs(walked.astype(int) - model.generate([9], "ancestral", 4, labels=[2])).max() <= 1
