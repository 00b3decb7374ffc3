"""Networks of a user's own and docs/your_network.md: they go through all that a `UNet` goes through, or are refused."""

import re

import keras
import numpy as np
import pytest
from helpers.comparing import assert_same
from helpers.image_samples import random_pixels
from helpers.own_networks import SHAPE, Subclassed, T, functional, model
from helpers.places import ROOT
from keras import layers

import kddpm
from kddpm.base.errors import InputError
from kddpm.networks import contract

X, LABELS = random_pixels(16, *SHAPE), np.arange(16) % 3


def trained(network, **choices):
    ours = model(network, **choices)
    ours.fit(X, LABELS, batch_size=8, verbose=0)
    return ours


def test_the_page_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "your_network.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    names = {"__name__": "your_network"}
    exec(program, names)
    assert {path.name for path in tmp_path.glob("*.tflite")} == {"functional.tflite", "subclassed.tflite"}
    assert names["pictures"].shape == (4, *SHAPE) and np.isfinite(names["bits"].total)
    ours = names["model"]
    assert_same(ours.ema_network.get_weights(), ours.network.get_weights())


def inner_model():
    x = keras.Input((8, 8, 8))
    return keras.Model(x, layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))


def shared():
    conv = layers.Conv2D(8, 3, padding="same")
    return lambda h: conv(conv(h))


def normalization():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 5, (4, 8, 8, 8)))
    return layer


INNER = {
    "plain": lambda: None,
    "shared": shared,
    "nested": inner_model,
    "sequential": lambda: keras.Sequential([layers.Conv2D(8, 1), layers.ReLU()]),
    "statistics": layers.BatchNormalization,
    "adapted": normalization,
    "random": lambda: layers.Dropout(0.5),
    "spectral": lambda: layers.SpectralNormalization(layers.Conv2D(8, 1)),
}


def assert_loads(ours, path, **options):
    """Whether a file generates the same pictures, trains on, and whether the loaded one does both."""
    ours.save(path)
    again = keras.models.load_model(path, **options)
    pictures = {"seeds": range(2), "num_steps": 3}
    np.testing.assert_array_equal(again.generate(**pictures), ours.generate(**pictures))
    for one in (ours, again):
        one.fit(X, LABELS, batch_size=8, verbose=0, shuffle=False)
    assert_same(again.get_weights(), ours.get_weights())


@pytest.mark.parametrize("inner", INNER)
def test_functional_models_are_loaded_and_go_on(inner, tmp_path):
    assert_loads(trained(functional(INNER[inner]())), tmp_path / "a.keras")


@pytest.mark.parametrize("number", [int, np.int64])
def test_classes_are_remembered_by_a_file(number, tmp_path):
    ours = trained(functional(classes=3, num_classes=number(3)))
    assert type(ours.network.num_classes) is int
    assert_loads(ours, tmp_path / "a.keras")
    assert keras.models.load_model(tmp_path / "a.keras").ema_network.num_classes == 3


def test_a_subclassed_model_is_built_loaded_and_goes_on(tmp_path):
    assert_loads(trained(Subclassed(16)), tmp_path / "a.keras")


class UnknownLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(y_true - y_pred)


def test_how_a_network_was_compiled_for_itself_is_forgotten(tmp_path):
    network = functional()
    network.compile("adam", UnknownLoss())
    ours = trained(network)
    assert not ours.ema_network.compiled
    assert_loads(ours, tmp_path / "a.keras")


def test_a_class_that_keras_does_not_know_is_told_and_loads_with_custom_objects(tmp_path):
    class Unknown(layers.Layer):
        def call(self, x):
            return x

    with pytest.warns(UserWarning, match="load only with custom_objects, as Keras does not know Unknown"):
        ours = trained(functional(Unknown()))
    assert_loads(ours, tmp_path / "a.keras", custom_objects={"Unknown": Unknown})


def test_a_learned_variance_needs_no_attribute(tmp_path):
    ours = trained(functional(channels=2), variance="learned", weighting="hybrid")
    assert np.isfinite(ours.bits_per_dim(X[:2]).total)
    assert_loads(ours, tmp_path / "a.keras")


def test_it_is_exported_in_float32(tmp_path):
    """From bfloat16; the page exports networks that are float32 already."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    ours = trained(functional(layers.BatchNormalization()))
    for path, file_format in (("a.tflite", "litert"), ("b", "tf_saved_model")):
        about = ours.export(tmp_path / path, file_format, sampler="ddim", num_steps=3, parity_seeds=1, verbose=False)
        assert about["parity"]["max_grey_levels"] <= 1


class Forgetful(Subclassed):
    def get_config(self):
        return {}


class OfAnObject(Subclassed):
    def __init__(self, what):
        super().__init__()
        self.what = what


class Dilated(Subclassed):
    """Its copy has the same shapes and computes something else."""

    def __init__(self, rate=1, **kwargs):
        super().__init__(**kwargs)
        self.conv_in = layers.Conv2D(8, 3, padding="same", dilation_rate=rate)


REFUSED = {
    "channels": (lambda: functional(shape=(8, 8, 3)), "must have 3 output channels .*. Received: 1"),
    "size": (
        lambda: functional(layers.MaxPooling2D()),
        r"must give \(2, 8, 8, channels\) .*: an output of shape \(2, 4",
    ),
    "integers": (lambda: _with_output(lambda y: keras.ops.cast(y, "int32")), "one tensor of floats. Received: int32"),
    "one image": (lambda: _OneImage(), r"for two images of .*: an output of shape \(1, 8, 8, 1\)"),
    "not a number": (lambda: _with_output(lambda y: y * np.nan), "must give finite numbers. Received: NaN or infinite"),
    "no default": (lambda: _WithoutDefault(), "must have defaults for all arguments of call but the first.*: training"),
    "two outputs": (lambda: _with_output(lambda y: [y, y]), "must give one tensor of floats. Received: list"),
    "no size": (lambda: functional(shape=(None, None, 1)), r"image_shape, \(H, W, C\), .*: an input of shape \(None, "),
    "no attribute": (lambda: _Bare(), "must have the attribute image_shape"),
    "labels": (lambda: functional(classes=3), "has an input for labels and must have the attribute num_classes"),
    "no labels": (lambda: functional(num_classes=3), r"\[x_t, t, label\].* Received: 2 inputs, num_classes=3"),
    "half a class": (lambda: functional(classes=3, num_classes=2.5), "`num_classes` must be an integer"),
    "rows": (
        lambda: functional(classes=3, rows=3, num_classes=3),
        r"in 0 .. 3, where 3 means no class.* = 3 is not in",
    ),
    "timesteps": (lambda: functional(timesteps=5), r"t int32 \(B,\) in 0 .. 9\].* = 9 is not in \[0, 5\)"),
    "sequential": (
        lambda: keras.Sequential([keras.Input(SHAPE), layers.Conv2D(1, 1)]),
        "a Sequential, which takes one",
    ),
    "a layer": (lambda: layers.Conv2D(1, 1), "must be a Keras model. Received: Conv2D"),
    "half weights": (lambda: functional(layers.Conv2D(8, 1, dtype="bfloat16")), "must have float32 weights"),
    "forgets": (lambda: Forgetful(16), "made anew by get_config and from_config.* not compatible"),
    "an object": (lambda: OfAnObject(object()), "made anew by get_config and from_config.*OfAnObject"),
    "lambda": (lambda: functional(layers.Lambda(lambda h: 2 * h)), "made anew by .* `Lambda`"),
    "computes else": (lambda: Dilated(3), "whose copy computes something else"),
}


class _Bare(keras.Model):
    def call(self, inputs):
        return inputs[0]


class _OneImage(Subclassed):
    def call(self, inputs):
        return super().call(inputs)[:1]


class _WithoutDefault(Subclassed):
    def call(self, inputs, training):
        return super().call(inputs)


def _with_output(change):
    network = functional()
    return keras.Model(network.inputs, change(network.output))


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_contract_is_refused_when_the_model_is_made(case):
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        model(make())
    assert "\n" not in str(caught.value)


def test_inputs_in_another_order_are_refused():
    network = functional()
    with pytest.raises(InputError, match=r"must take \[x_t, t\] or \[x_t, t, label\]"):
        model(keras.Model(network.inputs[::-1], network.output))


def test_a_denoiser_asks_for_the_same():
    with pytest.raises(InputError, match="must have 3 output channels"):
        kddpm.Denoiser(functional(shape=(8, 8, 3)), kddpm.schedules.cosine(T))
    assert kddpm.Denoiser(Subclassed(), kddpm.schedules.cosine(T)).num_classes is None


def test_the_check_moves_no_state():
    network = functional(lambda h: layers.Dropout(0.5)(layers.BatchNormalization()(h)))
    before = [np.array(variable) for variable in network.variables]
    model(network)
    assert_same([np.array(variable) for variable in network.variables], before)


def test_a_seed_is_given_to_networks_that_take_one(make_unet):
    assert contract.takes_seed(make_unet())
    assert not contract.takes_seed(Subclassed()) and not contract.takes_seed(functional())


def test_layers_of_another_image_format_are_named():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(InputError, match="layers made with Keras's image_data_format channels_first do not"):
            model(functional())
    finally:
        keras.config.set_image_data_format("channels_last")
