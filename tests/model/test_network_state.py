"""What a step changes in a network besides its weights, what layers add to the loss, and what is not trained."""

import json
import warnings

import keras
import numpy as np
import pytest
from helpers.comparing import assert_same
from helpers.image_samples import random_pixels
from helpers.own_networks import SHAPE, Busy, Subclassed, everything, functional, model
from helpers.processes import python
from keras import layers

from kddpm.base.errors import InputError

X = random_pixels(16, *SHAPE)
STATEFUL = {
    "statistics": layers.BatchNormalization,
    "random": lambda: layers.Dropout(0.5),
    "spectral": lambda: layers.SpectralNormalization(layers.Conv2D(8, 1)),
    "counter": Busy,
}


def fit(ours, images=X, **options):
    return ours.fit(images, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options}).history


def of(network, name):
    return [np.array(weight) for weight in network.weights if weight.name == name]


# A step that is not finite.


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("layer", STATEFUL)
def test_a_step_that_is_not_finite_changes_nothing(layer, accumulation):
    ours = model(functional(STATEFUL[layer]()), accumulation=accumulation)
    fit(ours)
    kernel = next(weight for weight in ours.network.trainable_variables if weight.name == "kernel")
    sound = kernel.numpy()
    kernel.assign(np.full(kernel.shape, np.nan))
    before = everything(ours)
    history = fit(ours)
    assert history["skipped_steps"] == [2.0] and history.get("size", [0.0]) == [0.0]
    assert_same(everything(ours), before)
    kernel.assign(sound)
    assert np.isfinite(fit(ours)["loss"]).all() and np.isfinite(ours.evaluate(X, verbose=0))


class Batches(keras.utils.PyDataset):
    """One batch that `fit` has not seen beforehand."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return (self.images,)


def test_images_of_nan_leave_statistics_alone():
    ours, images = model(functional(layers.BatchNormalization())), X / np.float32(127.5) - 1
    before = everything(ours)
    images[0] = np.nan
    with pytest.raises(InputError):
        ours.fit(Batches(images), verbose=0)
    assert_same(everything(ours), before)
    fit(ours)
    assert np.isfinite(ours.evaluate(X, verbose=0)) and ours.generate([0, 1], num_steps=3).std() > 1


@keras.saving.register_keras_serializable("tests")
class Overflowing(layers.Layer):
    """A layer whose state leaves float32 in the second step, of which the output says nothing."""

    def build(self, input_shape):
        state = {"shape": (), "trainable": False}
        self.sum = self.add_weight(initializer=keras.initializers.Constant(1e20), name="sum", **state)
        self.lowest = self.add_weight(initializer=keras.initializers.Constant(np.inf), name="lowest", **state)

    def call(self, x, training=False):
        if training:
            self.sum.assign(self.sum * 1e15)
            self.lowest.assign(keras.ops.minimum(self.lowest, keras.ops.min(x)))
        return x


def test_a_step_that_only_loses_its_state_is_skipped_and_infinite_starts_are_not():
    ours = model(functional(Overflowing()))
    assert fit(ours)["skipped_steps"] == [1.0]
    assert of(ours.network, "sum") == [np.float32(1e20) * np.float32(1e15)] and np.isfinite(of(ours.network, "lowest"))
    assert of(ours.ema_network, "sum") == of(ours.network, "sum")


# The average.


def test_the_average_copies_what_is_not_trained():
    network = functional(lambda h: layers.BatchNormalization()(Busy()(h)))
    ours = model(network, "sgd", ema_momentum=0.5)
    start = of(network, "kernel")
    assert fit(ours, epochs=2)["size"][0] > 0
    assert of(ours.ema_network, "calls") == of(network, "calls") == [4]
    for name in ("moving_mean", "moving_variance", "largest"):
        assert_same(of(ours.ema_network, name), of(network, name))
    for first, now, average in zip(start, of(network, "kernel"), of(ours.ema_network, "kernel"), strict=True):
        assert np.abs(now - first).max() > 1e-6 and np.abs(now - average).max() > 1e-7


def test_the_average_starts_again_from_weights_that_were_set():
    adapted = layers.Normalization()
    adapted.adapt(np.zeros((2, 8, 8, 8)))
    ours = model(functional(adapted))
    inputs = [X[:2] / np.float32(127.5) - 1, np.array([1, 7])]
    ours.network.set_weights([weight + 1 for weight in ours.network.get_weights()])
    adapted.adapt(np.random.default_rng(0).normal(3, 5, (4, 8, 8, 8)))
    assert np.abs(ours.ema_network(inputs) - ours.network(inputs)).max() > 0.1
    ours.reset_average()
    np.testing.assert_array_equal(ours.ema_network(inputs), ours.network(inputs))


def test_random_layers_go_on_after_a_file_as_if_they_had_never_stopped(tmp_path):
    ours = model(functional(layers.Dropout(0.5)))
    fit(ours)
    ours.save(tmp_path / "a.keras")
    keras.utils.set_random_seed(7)
    again = keras.models.load_model(tmp_path / "a.keras")
    assert fit(ours)["loss"] == fit(again)["loss"]
    other = model(functional(layers.Dropout(0.5)), seed=1)
    other.set_weights(ours.get_weights())
    assert fit(other)["loss"] != fit(ours)["loss"]


# What layers add to the loss.


def losses(make, **choices):
    keras.utils.set_random_seed(0)
    ours = model(functional(make()), keras.optimizers.SGD(0.0), **choices)
    history = fit(ours, validation_data=X, epochs=1)
    return ours, np.array([history["loss"][0], history["val_loss"][0]])


def conv(regularizer=None):
    return layers.Conv2D(8, 1, kernel_regularizer=regularizer)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_regularizers_and_added_losses_are_added_once(accumulation):
    _, plain = losses(conv, accumulation=accumulation)
    ours, more = losses(lambda: conv(keras.regularizers.L2(3.0)), accumulation=accumulation)
    (kernel,) = [weight for weight in ours.network.weights if weight.regularizer]
    np.testing.assert_allclose(more - plain, 3.0 * np.square(kernel).sum(), rtol=1e-4)
    _, more = losses(lambda: keras.Sequential([conv(), Busy(5.0)]), accumulation=accumulation)
    np.testing.assert_allclose(more - plain, 5.0, rtol=1e-4)


def test_a_regularizer_pulls_at_its_weights():
    ours = model(functional(conv(keras.regularizers.L2(1e6))))
    (kernel,) = [weight for weight in ours.network.weights if weight.regularizer]
    before = np.square(kernel).sum()
    fit(ours, epochs=5)
    assert np.square(kernel).sum() < before


def test_the_output_of_a_layer_can_be_regularized():
    _, plain = losses(lambda: None)
    _, more = losses(lambda: layers.ActivityRegularization(l2=0.1))
    assert np.all(more > plain + 0.01)


def test_frozen_weights_are_not_regularized():
    def frozen():
        layer = conv(keras.regularizers.L2(1e6))
        layer.trainable = False
        return layer

    (_, plain), (_, more) = losses(conv), losses(frozen)
    np.testing.assert_allclose(more, plain, rtol=1e-5)


# What is not trained.


def test_a_network_without_trainable_weights_warns(tmp_path):
    model(Subclassed()).ema_network.save(tmp_path / "average.keras")
    network = keras.models.load_model(tmp_path / "average.keras")
    with pytest.warns(UserWarning, match="not have any trainable weights.*`network.trainable = True`"):
        fit(model(network))
    network.trainable = True
    before, ours = network.get_weights(), model(network)
    fit(ours)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, network.get_weights(), strict=True))


@keras.saving.register_keras_serializable("tests")
class Stop(layers.Layer):
    def call(self, x):
        return keras.ops.stop_gradient(x)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_layer_without_gradients_warns_and_the_others_train(accumulation):
    network = functional(lambda h: h + Stop()(layers.Conv2D(8, 1, name="apart")(h)))
    ours, before = model(network, keras.optimizers.AdamW(0.1), accumulation=accumulation), network.get_weights()
    with pytest.warns(UserWarning, match="will not be trained: apart/kernel, apart/bias"):
        fit(ours)
    still = [weight.path.startswith("apart") for weight in network.weights]
    assert [np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True)] == still
    with pytest.raises(InputError, match="`network` must have trainable weights on which its output depends"):
        fit(model(keras.Model(network.inputs, Stop()(network.output)), accumulation=accumulation))


def test_layers_are_frozen_before_compile():
    frozen = conv()
    frozen.trainable = False
    ours = model(functional(frozen))
    frozen.trainable = True
    with pytest.raises(InputError, match="`network` has other trainable weights than .*: call `compile` again"):
        fit(ours)
    ours.compile("adam")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(ours)


def test_compile_refuses_what_this_step_does_not_do():
    with pytest.raises(InputError, match="`network` must compute in float32 or bfloat16"):
        model(functional(layers.Conv2D(8, 1, dtype="mixed_float16")))
    with pytest.raises(InputError, match="`loss_weights` follows from the model's"):
        model(functional()).compile("adam", loss_weights=[2.0])
    with pytest.raises(InputError, match="`optimizer` must be a Keras optimizer"):
        model(functional()).compile(None)


TWO_REPLICAS = """
import json
import numpy as np, tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from keras import layers
from helpers.own_networks import SHAPE, everything, functional, model
from kddpm.base.errors import InputError

X = np.random.default_rng(0).integers(0, 256, (16, *SHAPE)).astype("uint8")


@keras.saving.register_keras_serializable("tests")
class Calls(layers.Layer):
    aggregation = "none"

    def build(self, shape):
        state = {"dtype": "int32", "initializer": "zeros", "trainable": False, "aggregation": self.aggregation}
        self.calls = self.add_weight(shape=(), **state)

    def call(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return x


def inner(h):
    h = layers.Dropout(0.0)(layers.Conv2D(8, 1, kernel_regularizer=keras.regularizers.L2(3.0))(h))
    return layers.Dropout(0.5)(Calls()(h * 0.0))


def normalized(h):
    return layers.BatchNormalization()(h)


def run(strategy, layer, bad):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        ours = model(functional(layer), keras.optimizers.SGD(0.01), clip_norm=None)
        if bad:
            kernel = ours.network.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, np.nan))
    before = everything(ours)
    history = ours.fit(X, batch_size=8, shuffle=False, verbose=0).history
    return history, before, everything(ours), [int(w.numpy()) for w in ours.ema_network.weights if w.dtype == "int32"]


mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
one, two = run(tf.distribute.get_strategy(), inner, False), run(mirrored, inner, False)
skipped = [run(mirrored, layer, True) for layer in (inner, normalized)]
moved = run(mirrored, normalized, False)
Calls.aggregation = "only_first_replica"
try:
    with mirrored.scope():
        ours = model(functional(inner), accumulation=2)
    ours.fit(X, batch_size=8, verbose=0)
    refused = ""
except InputError as error:
    refused = str(error)
print(json.dumps({
    "loss": [one[0]["loss"], two[0]["loss"]],
    "calls": [one[3], two[3]],
    "skipped": [s[0]["skipped_steps"] for s in skipped],
    "unchanged": [all(np.array_equal(a, b, equal_nan=True) for a, b in zip(s[1], s[2])) for s in skipped],
    "moved": [float(np.abs(a.astype(float) - b).max()) for a, b in zip(moved[1], moved[2])].count(0.0),
    "refused": refused,
}))
"""


def test_two_replicas_do_the_same(tmp_path):
    result = python("-c", TWO_REPLICAS, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    np.testing.assert_allclose(*said["loss"], rtol=1e-5)
    assert said["calls"] == [[2], [2]]
    assert said["skipped"] == [[2.0], [2.0]] and said["unchanged"] == [True, True]
    assert said["moved"] < 4
    assert said["refused"].startswith("`accumulation` must be 1 on several replicas")
