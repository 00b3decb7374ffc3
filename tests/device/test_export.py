"""Exports of small models with weights like trained ones, in every format and precision, beside Keras."""

import dataclasses
import functools
import hashlib
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.comparing import assert_same
from helpers.networks import OneConv, one_conv_model
from keras import ops

import kddpm
from kddpm import device
from kddpm.device import description, export, litert, packing, parity, signatures
from kddpm.runs import build, presets
from kddpm.sampling import noise, samplers
from kddpm.theory import parametrization, schedules

SAMPLERS = {"ancestral": samplers.Ancestral("large"), "ddim": samplers.DDIM(eta=0.5)}
QUICK = {"num_steps": 4, "parity_seeds": 2, "verbose": False}


def as_batch(numbers):
    return np.array(numbers, np.int32)


@pytest.fixture(scope="module", autouse=True)
def one_latency():
    """One measurement instead of a second's: no test looks at the number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_LATENCY_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def phone(trained_like, tmp_path_factory):
    """Exports of the small U-Net: (name of a sampler, precision) -> path and description, made once each."""

    @functools.cache
    def export(name, precision):
        path = tmp_path_factory.mktemp("phone") / "phone.tflite"
        return path, trained_like.export(path, sampler=SAMPLERS[name], precision=precision, **QUICK)

    return export


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("ancestral", "float32"),
        ("ancestral", "int8"),
        pytest.param("ddim", "float32", marks=pytest.mark.slow),
        pytest.param("ancestral", "float16", marks=pytest.mark.slow),
        pytest.param("ddim", "float16", marks=pytest.mark.slow),
        pytest.param("ddim", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_file_paints_what_keras_paints(trained_like, phone, precision, name):
    path, about = phone(name, precision)
    content = path.read_bytes()
    assert about == json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(content).hexdigest() and about["bytes"] == len(content)
    chosen = {"name": name, "num_steps": 4, **dataclasses.asdict(SAMPLERS[name])}
    assert about["network_calls"] == 4 and about["sampler"] == chosen
    assert about["prediction"] == "eps" and about["guidance_scale"] == 1
    assert about["parity"]["noise_identical"] and about["parity"]["seeds"] == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["phone.json", "phone.tflite"]

    seeds = [3, -1, 2**31 - 1]
    pictures = trained_like.generate(seeds, SAMPLERS[name], 4)
    assert len(np.unique(pictures)) > 20  # pictures that could differ
    for xnnpack in (True, False):
        run = litert.load(content, xnnpack=xnnpack)
        for seed, picture in zip(seeds, pictures, strict=True):
            seed = as_batch([seed])
            x = run["start"](seed=seed)["x"]
            assert x.tobytes() == noise.normal(seed, noise.INITIAL_STREAM, 0, (8, 8, 1)).numpy().tobytes()
            whole = run["generate"](seed=seed)["image"]
            for index in range(4):
                x = run["step"](x=x, index=as_batch([index]), seed=seed)["x"]
            by_steps = run["finish"](x=x)["image"]
            assert whole.dtype == by_steps.dtype == np.int32
            for found in (whole[0], by_steps[0]):
                difference = np.abs(found - picture)
                assert difference.mean() <= parity.LIMITS[precision].mean_grey_levels
                assert difference.max() <= {"float32": 1, "float16": 10, "int8": 100}[precision]


def test_denoise_is_the_network(trained_like, phone):
    path, _ = phone("ancestral", "float32")
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    t = as_batch([7])
    eps = litert.load(path.read_bytes())["denoise"](x=x, t=t)["eps"]
    np.testing.assert_allclose(eps, trained_like.ema_network([x, t]), atol=1e-5)


NAMES = [99, 499, 999]
SCHEDULES = {
    "whole": schedules.linear(20, 1e-3, 0.5),
    "respaced": schedules.linear(1000).respace(NAMES),  # its steps keep their names
    "to pure noise": schedules.zero_terminal_snr(schedules.linear(20, 1e-3, 0.5)),
}


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    # eps is refused where there is no signal
    [pair for pair in itertools.product(parametrization.PREDICTIONS, SCHEDULES) if pair != ("eps", "to pure noise")],
)
def test_denoise_gives_eps_whatever_the_network_predicts(give_weights, prediction, schedule):
    """Converted by hand, Ho et al. 2020, eq. 4 and 7, Salimans & Ho 2022, section 4, and as below."""
    schedule = SCHEDULES[schedule]
    network = OneConv((8, 8, 1), out_channels=2, num_timesteps=1000)
    model = kddpm.DiffusionModel(network, schedule, prediction=prediction, variance="learned", weighting="hybrid")
    give_weights(model)
    denoise = signatures.signatures(model.denoiser, model.denoiser.steps("ddim", 2), batch_size=1)["denoise"]
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    alpha_bars = np.concatenate([[1.0], schedule.alpha_bars])
    for index, name in enumerate(schedule.timesteps):
        t = as_batch([name])
        output = model.ema_network([x, t]).numpy()[..., :1].astype(float)
        before, after = alpha_bars[index : index + 2]
        beta, x_0 = 1 - after / before, output
        if prediction == "mu":
            x_0 = (output * (1 - after) - np.sqrt(after / before) * (1 - before) * x) / (np.sqrt(before) * beta)
        elif prediction == "edm":  # Karras et al. 2022, eq. 7, in x_t
            c = 1 - 0.75 * after
            x_0 = 0.25 * np.sqrt(after) / c * x + 0.5 * np.sqrt((1 - after) / c) * output
        if prediction == "v":
            expected = np.sqrt(after) * output + np.sqrt(1 - after) * x
        elif prediction == "velocity":  # eps - x_0
            expected = (x + np.sqrt(after) * output) / (np.sqrt(after) + np.sqrt(1 - after))
        elif prediction == "eps":
            expected = output
        else:
            expected = (x - np.sqrt(after) * x_0) / np.sqrt(1 - after)
        eps = denoise(x=tf.constant(x), t=tf.constant(t))["eps"]
        assert eps.shape == x.shape
        np.testing.assert_allclose(eps, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


STATES = {"ancestral": 1, "ddim": 1, "dpm_solver": 2, "heun": 2, "predictor_corrector": 1}  # in channels of a picture
CALLS = {"ancestral": 3, "ddim": 3, "dpm_solver": 3, "heun": 5, "predictor_corrector": 5}  # of `step`, in 3 steps


MODELS = {
    "eps": ({}, {}),
    "v with classes": (
        {"num_classes": 2, "out_channels": 4},
        {"prediction": "v", "variance": "learned", "weighting": "hybrid"},
    ),
}


@pytest.mark.parametrize("name", samplers.BY_NAME)
@pytest.mark.parametrize("kind", ["v with classes", pytest.param("eps", marks=pytest.mark.slow)])
def test_every_sampler_goes_into_a_file(kind, name, tmp_path):
    """With classes also guidance, a learned variance and dynamic clipping."""
    network, choices = MODELS[kind]
    model, guided = one_conv_model(network, **choices), kind != "eps"
    sampler = samplers.by_name(name, clip="dynamic" if guided else True)
    arguments = {"guidance_scale": 2.0} if guided else {}
    path = tmp_path / "m.tflite"
    about = model.export(path, sampler=sampler, num_steps=3, parity_seeds=2, verbose=False, **arguments)
    picture, state = [1, 8, 8, 2], [1, 8, 8, 2 * STATES[name]]
    shapes = {
        signature: {
            "in": described["inputs"].get("x", {}).get("shape"),
            "out": next(iter(described["outputs"].values()))["shape"],
        }
        for signature, described in about["signatures"].items()
    }
    assert shapes == {
        "generate": {"in": None, "out": picture},
        "start": {"in": None, "out": state},
        "step": {"in": state, "out": state},
        "finish": {"in": state, "out": picture},
        "denoise": {"in": picture, "out": picture},
        "noise": {"in": None, "out": picture},
    }
    assert set(about["signatures"]["denoise"]["outputs"]) == {"eps", "x0", *(["fraction"] if guided else [])}
    assert (about["network_calls"], about["sampler"]["num_steps"]) == (CALLS[name], 3)
    assert (about["sampler"]["name"], about["sampler"]["clip"]) == (name, sampler.clip)
    assert (about["prediction"], about["guidance_scale"]) == (model.objective.prediction, 2 if guided else 1)
    assert ("TOPK_V2" in about["operators"]) == guided  # of dynamic clipping; `operators` holds builtin ones alone

    seed, label = as_batch([3]), {"label": as_batch([1])} if guided else {}
    labels = label.get("label")
    painted = model.generate(seed, sampler, 3, labels=labels, **arguments).astype(int)
    run = litert.load(path.read_bytes())
    x = run["start"](seed=seed)["x"]
    for index in range(CALLS[name]):
        x = run["step"](x=x, index=as_batch([index]), seed=seed, **label)["x"]
    by_client = parity.walked_by_client(run["noise"], run["denoise"], about["steps"], {"seed": seed, **label})
    for image in (run["generate"](seed=seed, **label)["image"], run["finish"](x=x)["image"], by_client.astype(int)):
        assert np.abs(image - painted).max() <= 1
    assert len(np.unique(painted)) > 20
    if guided:  # and it shows
        assert np.abs(model.generate(seed, sampler, 3, labels=labels).astype(int) - painted).max() > 5


def test_every_sampler_is_listed():
    assert set(STATES) == set(CALLS) == set(samplers.BY_NAME)


def test_the_averaged_weights_are_exported(tmp_path):
    model = one_conv_model()
    for weight in model.network.weights:
        weight.assign(weight * 0)
    model.export(tmp_path / "m.tflite", **QUICK)  # the comparison is with `generate`, which uses the average
    picture = litert.load((tmp_path / "m.tflite").read_bytes())["generate"](seed=as_batch([1]))["image"]
    assert len(np.unique(picture)) > 5


def test_labels_go_into_the_file(tmp_path):
    model = one_conv_model({"num_classes": 3})
    about = model.export(tmp_path / "m.tflite", class_names=["zero", "one", "two"], **QUICK)
    assert about["num_classes"] == 3 and about["class_names"] == ["zero", "one", "two"]
    assert {name for name, s in about["signatures"].items() if "label" in s["inputs"]} == {
        "generate",
        "step",
        "denoise",
    }
    run = litert.load((tmp_path / "m.tflite").read_bytes())
    painted = []
    for label in range(3):
        picture = run["generate"](seed=as_batch([4]), label=as_batch([label]))["image"]
        expected = model.generate([4], "ancestral", 4, labels=[label])
        assert np.abs(picture - expected).max() <= 1
        painted.append(picture)
    assert not np.array_equal(painted[0], painted[1]) and not np.array_equal(painted[1], painted[2])
    with pytest.raises(kddpm.InputError, match=r"`class_names` must be one a class, 3\. Received: 2"):
        model.export(tmp_path / "n.tflite", class_names=["zero", "one"], **QUICK)


def test_a_batch_is_made_of_the_same_pictures(tmp_path):
    model = one_conv_model()
    about = model.export(tmp_path / "m.tflite", batch_size=3, sampler="ancestral", **QUICK)
    assert about["signatures"]["step"]["inputs"] == {
        "x": {"shape": [3, 8, 8, 2], "dtype": "float32"},
        "index": {"shape": [1], "dtype": "int32"},
        "seed": {"shape": [3], "dtype": "int32"},
    }
    pictures = litert.load((tmp_path / "m.tflite").read_bytes())["generate"](seed=as_batch([5, 6, 7]))["image"]
    np.testing.assert_allclose(pictures, model.generate([5, 6, 7], "ancestral", 4), atol=1)


def test_a_saved_model_generates_without_kddpm(tmp_path):
    folder = tmp_path / "saved"
    for model in (one_conv_model(), one_conv_model({"image_shape": (8, 8, 1)})):  # the second over the first
        about = model.export(folder, format="tf_saved_model", sampler="ancestral", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "saved.json"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(kddpm.InputError, match=r"must be new, empty or an export\. Received: .*notes\.txt"):
        model.export(folder, format="tf_saved_model", **QUICK)
    assert (folder / "notes.txt").read_text() == "mine"
    assert about["files"].keys() >= {"saved_model.pb", "variables/variables.index"}
    for name, sha256 in about["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    run = tf.saved_model.load(str(folder)).signatures
    picture = run["generate"](seed=tf.constant([9]))["image"]
    np.testing.assert_array_equal(picture, model.generate([9], "ancestral", 4))


def test_without_steps_it_takes_fifty_or_all(tmp_path):
    about = one_conv_model().export(tmp_path / "m.tflite", parity_seeds=1, verbose=False)
    assert about["network_calls"] == 20 and about["sampler"]["name"] == "ancestral"


def test_a_bfloat16_model_is_exported_in_float32(tmp_path):
    model, twin = one_conv_model({"dtype": "mixed_bfloat16"}), one_conv_model()
    model.export(tmp_path / "m.tflite", **QUICK)
    picture = litert.load((tmp_path / "m.tflite").read_bytes())["generate"](seed=as_batch([2]))["image"]
    np.testing.assert_allclose(picture, twin.generate([2], "ancestral", 4), atol=1)
    assert np.abs(picture - model.generate([2], "ancestral", 4).astype(int)).max() > 1


def test_the_float32_twin_of_a_model_predicts_what_the_model_predicts(make_unet):
    unet = make_unet(dtype="mixed_bfloat16", multipliers=(1,), num_classes=3, out_channels=2)
    choices = {"prediction": "v", "variance": "learned", "weighting": "vlb", "label_dropout": 0.2, "seed": 3}
    model = kddpm.DiffusionModel(unet, schedules.linear(1000).respace(NAMES), **choices)
    twin = export._in_float32(model.denoiser)
    assert (unet.compute_dtype, twin.network.compute_dtype) == ("bfloat16", "float32")
    for name in ("schedule", "objective", "knows_no_class", "image_shape", "num_classes"):
        assert getattr(twin, name) == getattr(model.denoiser, name)
    assert_same(twin.network.get_weights(), model.ema_network.get_weights())
    assert export._in_float32(twin) is twin


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "onnx"}, r"`format` must be one of litert, tf_saved_model\. Received: 'onnx'"),
        ({"precision": "int4"}, r"`precision` must be one of float32, float16, int8\. Received: 'int4'"),
        ({"format": "tf_saved_model", "precision": "int8"}, "`precision` of a SavedModel is float32"),
        ({"sampler": "euler"}, "`sampler` must be one of ancestral, ddim, .*, or a sampler. Received: 'euler'"),
        (
            {"sampler": samplers.Ancestral("learned")},
            "`variance` learned needs a model that learned one. Received: a model with 'small'",
        ),
        ({"guidance_scale": 2.0}, "`guidance_scale` needs a network with classes"),
        ({"num_steps": 21}, r"`num_steps` must be an integer in 1 \.\. 20 \(T\)\. Received: 21"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"threads": 1000}, r"`threads` must lie in 1 \.\. 256\. Received: 1000"),
        ({"parity_seeds": 0}, "`parity_seeds` must be an integer of at least 1"),
        ({"class_names": ["a"]}, r"`class_names` must be one a class, 0\. Received: 1"),
        ({"path": "model.onnx"}, r"`path` must end in \.tflite\. Received: .*model\.onnx"),
        ({"path": "file.txt/m.tflite"}, "`path` must be in a folder that can be written to"),
        ({"path": "folder.tflite"}, "`path` must be a file"),
        ({"path": "photos", "format": "tf_saved_model"}, "`path` must be new, empty or an export. Received: .*me.jpg"),
        ({"path": "config.tflite"}, "config.json for its description. Received: a file of something else"),
        ({"path": "."}, "`path` must end in .tflite"),
        ({"path": "/", "format": "tf_saved_model"}, "`path` must have a name of its own"),
        ({"path": "file.txt", "format": "tf_saved_model"}, "`path` must be a folder"),
    ],
)
def test_bad_arguments_end_before_anything_is_written(trained_like, tmp_path, changes, error):
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("mine")
    (tmp_path / "folder.tflite").mkdir()
    before = sorted(tmp_path.rglob("*"))
    path = tmp_path / changes.get("path", "new.tflite" if changes.get("format") != "tf_saved_model" else "new")
    arguments = {**QUICK, **{name: value for name, value in changes.items() if name != "path"}}
    with pytest.raises(kddpm.InputError, match=error):
        trained_like.export(path, **arguments)
    assert sorted(tmp_path.rglob("*")) == before


SPOILED = {
    "generate": lambda right: lambda seed: {"image": right(seed)["image"] + 2},
    "start": lambda right: lambda seed: {"x": right(seed)["x"] * (1 + 2**-22)},
    "step": lambda right: lambda x, index, seed: {"x": right(x, index, seed)["x"] * 1.1},
    "finish": lambda right: lambda x: {"image": right(x)["image"] * 0 + 7},
    "denoise": lambda right: lambda x, t: {**right(x, t), "eps": right(x, t)["eps"] * np.nan},
}


@pytest.mark.parametrize(
    ("broken", "format", "error"),
    [
        ("generate", "litert", "mean_grey_levels <= 1"),
        ("start", "tf_saved_model", "noise must have the bits"),
        ("step", "tf_saved_model", "grey_levels <= 1"),
        ("finish", "tf_saved_model", "grey_levels <= 1"),
        ("denoise", "tf_saved_model", "denoise_mean_error <= 0.001. Received: nan"),
    ],
)
def test_a_file_that_does_something_else_is_not_written(tmp_path, monkeypatch, broken, format, error):
    """What is saved differs in one signature; what it is compared with does not."""
    path = tmp_path / ("m.tflite" if format == "litert" else "m")
    old = path if format == "litert" else path / "saved_model.pb"
    old.parent.mkdir(exist_ok=True)
    old.write_text("the one before")
    described = json.dumps({"kddpm": "0", "file": path.name, "files": {"saved_model.pb": ""}})
    description.side_file(path).write_text(described)

    def save_spoiled(model, functions, folder, save=export._save):
        right = functions[broken]
        spoiled = tf.function(SPOILED[broken](right), right.input_signature, autograph=False)
        save(model, {**functions, broken: spoiled}, folder)

    monkeypatch.setattr(export, "_save", save_spoiled)
    with pytest.raises(kddpm.InputError, match=error):
        one_conv_model().export(path, format, **QUICK)
    left = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {old: "the one before", description.side_file(path): described}


def test_files_of_the_digits_are_small(tmp_path, give_weights):
    model = build.build_model(presets.make_config("digits"), (8, 8, 1))
    give_weights(model)
    table = samplers.step_table(samplers.Ancestral(), model.schedule, 50)
    export._save(model.denoiser, {"step": signatures.signatures(model.denoiser, table, 1)["step"]}, tmp_path)
    converted = litert.convert(tmp_path, ["step"])
    sizes = {name: len(packing.pack(litert.quantize(converted, name), "step")) for name in device.PRECISIONS}
    assert sizes["float16"] <= 0.55 * sizes["float32"] and sizes["int8"] <= 0.31 * sizes["float32"]


def test_an_operator_that_is_not_builtin_is_named(tmp_path):
    class Foreign(keras.Model):
        image_shape, num_classes = (8, 8, 1), None

        def call(self, inputs, training=False, seed=None):
            return ops.erf(inputs[0]) + ops.erfinv(inputs[0] / 9)

    network = Foreign()
    network.built = True
    model = kddpm.DiffusionModel(network, kddpm.schedules.linear(20, 1e-3, 0.5))
    with pytest.raises(kddpm.InputError, match=r"must consist of builtin TFLite operators\. Received: .*Erf"):
        model.export(tmp_path / "m.tflite", **QUICK)
    assert not list(tmp_path.iterdir())


def test_the_report_says_what_the_file_is(phone):
    text = description.report(phone("ancestral", "int8")[1])
    for part in (
        "phone.tflite",
        "int8",
        "8x8x1, 4 steps of ancestral, clip=True, spacing=trailing, variance=large",
        "step(x, index, seed)",
        "CONV_2D",
        "XNNPACK",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
