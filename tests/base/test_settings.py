"""Keras's settings are honoured, or refused in a line before anything is built."""

import json

import keras
import numpy as np
import pytest
from helpers.processes import python

import kddpm
from kddpm.base import settings
from kddpm.base.errors import InputError

INPUTS = [np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32"), np.array([1, 5], "int32")]


@pytest.fixture
def set_backend(monkeypatch, tmp_path):
    """Set Keras's backend by the environment or the file, for a Keras that is not imported yet."""
    monkeypatch.delitem(settings.sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def set_(environment=None, file=None):
        if environment is not None:
            monkeypatch.setenv("KERAS_BACKEND", environment)
        if file is not None:
            (tmp_path / "keras.json").write_text(file)

    return set_


@pytest.mark.parametrize(
    ("environment", "file", "name", "where"),
    [
        (None, None, "tensorflow", "by default"),
        ("jax", None, "jax", "by KERAS_BACKEND"),
        ("torch", json.dumps({"backend": "jax"}), "torch", "by KERAS_BACKEND"),
        ("", json.dumps({"backend": "jax"}), "jax", "in "),
        (None, json.dumps({"backend": "torch"}), "torch", "keras.json"),
        (None, json.dumps({"floatx": "float32"}), "tensorflow", "by default"),
        (None, "not JSON", "tensorflow", "by default"),
        (None, "[]", "tensorflow", "by default"),
    ],
)
def test_the_backend_is_known_before_keras_is_imported(set_backend, environment, file, name, where):
    set_backend(environment, file)
    found = settings.backend()
    assert found[0] == name and where in found[1]


def test_the_backend_that_runs_counts(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # set after Keras was imported: too late to matter
    assert settings.backend()[0] == "tensorflow"
    settings.check_backend()


@pytest.mark.parametrize("floatx", ["float64", "bfloat16"])
def test_floatx_is_known_before_keras_is_imported(set_backend, floatx):
    set_backend(file=json.dumps({"floatx": floatx}))
    with pytest.raises(InputError, match=rf"floatx must be float32: .* Received: {floatx}, set in .*keras\.json$"):
        settings.check_floatx()


PROGRAM = """
import kddpm
try:
    kddpm.{name}
except kddpm.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("backend", ["jax", "torch", "no_such_backend"])
def test_another_backend_is_refused_before_keras_looks_for_it(backend):
    """None of them is installed here, so Keras's own error would name a missing package."""
    names = ["DiffusionModel", "Denoiser", "load_run", "toy", "train", "device", "UNet", "objectives"]
    script = "".join(PROGRAM.format(name=name) for name in names) + "kddpm.samplers, kddpm.schedules, kddpm.TrainConfig"
    lines = python("-c", script, KERAS_BACKEND=backend).stdout.splitlines()
    text = "Keras must run on TensorFlow: set KERAS_BACKEND=tensorflow before Keras is imported. Received: the backend "
    assert lines == [f"{text}{backend}, set by KERAS_BACKEND"] * len(names)


def test_every_public_name_is_sorted_by_its_need_of_tensorflow():
    """What imports TensorFlow is refused under another backend, and nothing else is."""
    names = sorted(set(kddpm.__all__) - set(kddpm._ON_TENSORFLOW))
    script = f"import kddpm, sys\nfor name in {names}: getattr(kddpm, name)\nprint('kddpm.model' in sys.modules)"
    assert python("-c", script).stdout.split()[-1] == "False"


@pytest.mark.parametrize("policy", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("how", ["argument", "policy", "floatx"])
def test_weights_that_are_not_float32_are_refused(make_unet, how, policy):
    options = {"dtype": policy} if how == "argument" else {}
    try:
        if how == "policy":
            keras.config.set_dtype_policy(policy)
        if how == "floatx":
            keras.config.set_floatx(policy)
            keras.config.set_dtype_policy(keras.config.floatx())
        with pytest.raises(InputError, match=rf"`dtype` must be float32, mixed_bfloat16 or .* Received: {policy}$"):
            make_unet(**options)
    finally:
        keras.config.set_floatx("float32")


def test_floatx_is_named():
    settings.check_floatx()
    network = kddpm.UNet((8, 8, 1), 8, (1,))
    keras.config.set_floatx("float64")
    try:
        for check in (settings.check_floatx, lambda: kddpm.DiffusionModel(network)):
            with pytest.raises(InputError, match=r'floatx must be float32: .*set_floatx\("float32"\).*: float64'):
                check()
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_policies_are_honoured(make_unet, policy):
    keras.config.set_dtype_policy(policy)
    unet = make_unet()
    assert unet(INPUTS).dtype == "float32" and {w.dtype for w in unet.trainable_weights} == {"float32"}


def test_channels_first_changes_nothing(make_unet):
    plain = make_unet(num_classes=3)
    inputs = [*INPUTS, np.array([0, 3])]
    keras.config.set_image_data_format("channels_first")
    try:
        unet = make_unet(num_classes=3)
        unet.set_weights(plain.get_weights())
        np.testing.assert_array_equal(unet(inputs), plain(inputs))
        model = kddpm.DiffusionModel(make_unet(multipliers=(1,), num_classes=3), kddpm.schedules.cosine(10))
        model.compile("adam")
        assert np.isfinite(model.fit(INPUTS[0].clip(-1, 1), np.array([0, 1]), verbose=0).history["loss"]).all()
        assert model.generate([1, 2], num_steps=2).shape == (2, 8, 8, 1)
    finally:
        keras.config.set_image_data_format("channels_last")
