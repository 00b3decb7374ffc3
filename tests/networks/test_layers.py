import contextlib
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kddpm.base.errors import InputError
from kddpm.networks import fused, layers

MODES = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, autograph=False, jit_compile=True),
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(layer, *inputs):
    layer.build(*(x.shape for x in inputs))
    return layer


def randomise(layer, seed=1):
    """Weights that hide nothing: the initial ones are zeros, ones and 1e-5 in many places."""
    rng = np.random.default_rng(seed)
    layer.set_weights([w + rng.normal(0, 0.3, w.shape).astype("float32") for w in layer.get_weights()])


def silu(x):
    return x / (1 + np.exp(-x))


# One harness for every layer: (class, arguments other than the defaults, inputs).
MAP = normal(2, 4, 6, 8)
CASES = [
    pytest.param(layers.TimestepEmbedding, {"width": 6}, [np.array([0, 3, 999])], id="TimestepEmbedding"),
    pytest.param(layers.GroupNormalization, {"groups": 2, "epsilon": 1e-3}, [MAP], id="GroupNormalization"),
    pytest.param(layers.Dropout, {"rate": 0.25}, [MAP], id="Dropout"),
    pytest.param(layers.Downsample, {}, [MAP], id="Downsample"),
    pytest.param(layers.Upsample, {}, [MAP], id="Upsample"),
    pytest.param(layers.AttentionBlock, {"groups": 4}, [MAP], id="AttentionBlock"),
    pytest.param(
        layers.ResidualBlock,
        {"channels": 4, "groups": 2, "dropout": 0.25, "attention": True},
        [MAP, normal(2, 16)],
        id="ResidualBlock",
    ),
]


def test_the_harness_knows_every_layer():
    known = {case.values[0] for case in CASES}
    written = {c for c in vars(layers).values() if inspect.isclass(c) and issubclass(c, keras.layers.Layer)}
    assert known == written


@pytest.mark.parametrize("cls, arguments, inputs", CASES)
def test_config_holds_every_argument(cls, arguments, inputs):
    if "__init__" in vars(cls):
        named = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
        assert set(named) == set(arguments), "give every argument of the layer a value in CASES"
    config = cls(**arguments, name="named", dtype="mixed_bfloat16").get_config()
    assert {key: config[key] for key in arguments} == arguments
    assert config["name"] == "named"
    assert cls.from_config(config).get_config() == config


@pytest.mark.parametrize("cls, arguments, inputs", CASES)
def test_a_layer_builds_itself_when_it_is_called(cls, arguments, inputs):
    layer = cls(**arguments)
    assert layer(*inputs).shape == layer.compute_output_shape(*(x.shape for x in inputs))


@pytest.mark.parametrize("cls, arguments, inputs", CASES)
def test_a_layer_survives_serialisation(cls, arguments, inputs):
    layer = built(cls(**arguments), *inputs)
    randomise(layer)
    expected = layer(*inputs).numpy()
    assert expected.shape == layer.compute_output_shape(*(x.shape for x in inputs))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(*inputs), expected)


@pytest.mark.parametrize("cls, arguments, inputs", CASES)
def test_mixed_precision(cls, arguments, inputs):
    plain, mixed = built(cls(**arguments), *inputs), built(cls(**arguments, dtype="mixed_bfloat16"), *inputs)
    randomise(plain)
    mixed.set_weights(plain.get_weights())
    expected, rounded = plain(*inputs), mixed(*inputs)
    assert expected.dtype == "float32" and rounded.dtype == "bfloat16"
    assert {w.dtype for w in mixed.weights} <= {"float32"}
    difference = np.abs(expected.numpy() - ops.cast(rounded, "float32").numpy())
    assert difference.max() < 16 * 2**-8 * max(
        1, np.abs(expected).max()
    )  # bfloat16 has 8 bits; a few roundings a layer


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("cls, arguments, inputs", CASES)
def test_eager_graph_and_xla_agree(cls, arguments, inputs, mode):
    layer = built(cls(**arguments), *inputs)
    randomise(layer)
    inputs = [tf.constant(x) for x in inputs]
    np.testing.assert_allclose(MODES[mode](layer)(*inputs), layer(*inputs), rtol=1e-5, atol=2e-5)


# Group normalisation.


def group_norm(x, groups, epsilon=1e-6):
    """The definition, in float64: mean and variance over height, width and the channels of a group."""
    x = np.asarray(x, np.float64)
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


FORMS = {"plain": contextlib.nullcontext, "for devices": layers.for_devices, "fused": fused.allowed}


@pytest.fixture(params=FORMS)
def form(request):
    """All forms in which a layer may compute what it computes."""
    with FORMS[request.param]():
        yield


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 8)])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_group_normalization_is_the_definition(groups, size):
    x = normal(3, *size, 8) * np.arange(1, 9, dtype="float32") + 2
    layer = layers.GroupNormalization(groups)
    layer.build(x.shape)
    scale, offset = normal(8, seed=1), normal(8, seed=2)
    layer.set_weights([scale, offset])
    np.testing.assert_allclose(layer(x), group_norm(x, groups) * scale + offset, atol=2e-5)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("groups", [1, 4])
def test_group_normalization_with_a_mean_far_above_the_deviation(groups):
    mean = 1e4
    x = mean + np.random.default_rng(0).normal(size=(2, 16, 16, 8))
    layer = layers.GroupNormalization(groups)
    # Rounding x to float32 moves it by up to mean * 2^-24 deviations; the float32 mean is off by a few times that.
    # Without centring first, the variance would be off by mean^2 * 2^-24 = 6 variances.
    np.testing.assert_allclose(layer(x.astype("float32")), group_norm(x, groups), atol=8 * mean * 2**-24)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_normalization_has_the_gradients_of_keras(groups):
    x, upstream = tf.constant(normal(2, 3, 5, 8) + 1), normal(2, 3, 5, 8, seed=1)
    gradients = []
    for layer in (layers.GroupNormalization(groups), keras.layers.GroupNormalization(groups, epsilon=1e-6)):
        layer.build(x.shape)
        layer.set_weights([normal(8, seed=2), normal(8, seed=3)])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x) * upstream)
        gradients.append(tape.gradient(y, [x, *(w.value for w in layer.weights)]))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_the_channels():
    with pytest.raises(InputError, match="`groups` must divide the channels. Received: groups=3, channels=8"):
        layers.GroupNormalization(3)(MAP)


def test_the_form_for_devices_ends_with_its_block():
    x = tf.constant(normal(1, 2, 2, 3))
    layer = built(layers.Upsample(), x)

    def operators():
        graph = tf.function(lambda x: layer(x), autograph=False).get_concrete_function(x).graph
        return {op.type for op in graph.get_operations()}

    with layers.for_devices():
        assert "Conv2DBackpropInput" not in operators()
    assert "Conv2DBackpropInput" in operators()


# Resampling.


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 2)])
def test_upsample_is_nearest_neighbour_then_a_convolution(size):
    x, upstream = tf.constant(normal(2, *size, 3)), normal(2, 2 * size[0], 2 * size[1], 3, seed=1)
    layer = layers.Upsample()
    layer.build(x.shape)
    randomise(layer)

    def plainly(x):
        doubled = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
        return ops.conv(doubled, layer.kernel, padding="same") + layer.bias

    values, gradients = [], []
    for call in (layer, plainly):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
            loss = tf.reduce_sum(y * upstream)
        values.append(y)
        gradients.append(tape.gradient(loss, [x, layer.kernel.value, layer.bias.value]))
    np.testing.assert_allclose(*values, atol=1e-5)
    for ours, plain in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 4), (2, 6)])
def test_downsample_pads_below_and_to_the_right(size):
    x = normal(2, *size, 3)
    layer = layers.Downsample()
    layer(x)
    randomise(layer)
    kernel, bias = (np.asarray(w, np.float64) for w in layer.get_weights())
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = np.zeros((2, size[0] // 2, size[1] // 2, 3)) + bias
    for row in range(3):
        for column in range(3):
            expected += padded[:, row : row + size[0] - 1 : 2, column : column + size[1] - 1 : 2] @ kernel[row, column]
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


# Dropout. Draws are functions of their seed, so a statistical test passes or fails for good; a correct generator would
# fall outside 5 standard errors for 6 seeds in 10 million, and an error of 10 standard errors is missed as rarely.

ONES = np.ones((8, 32, 32, 64), "float32")
SEEDS = [1, 2, 3, 4, 2**20, 2**31 - 2, 0, 77]


def dropped(x, seed, rate=0.3):
    return layers.Dropout(rate)(tf.constant(x), seed=tf.constant(seed, tf.int32), training=True).numpy()


def test_the_mask_is_a_function_of_the_seed():
    np.testing.assert_array_equal(dropped(MAP, [3, 7]), dropped(MAP, [3, 7]))
    for other in ([3, 8], [4, 7]):
        assert (dropped(MAP, [3, 7]) != dropped(MAP, other)).any()


def test_an_image_has_its_mask_in_any_batch():
    x = np.ones((8, 3, 5, 7), "float32")
    whole = dropped(x, SEEDS)
    np.testing.assert_array_equal(np.concatenate([dropped(x[:3], SEEDS[:3]), dropped(x[3:], SEEDS[3:])]), whole)
    assert len({mask.tobytes() for mask in whole}) == 8


def test_without_a_seed_masks_are_fresh():
    layer = layers.Dropout(0.3)
    assert (layer(MAP, training=True).numpy() != layer(MAP, training=True).numpy()).any()


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_dropout_keeps_its_share_and_the_expectation(rate):
    y = dropped(ONES, SEEDS, rate)
    kept = y != 0
    standard_error = np.sqrt(rate * (1 - rate) / y.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * standard_error + 2**-17  # the rate is rounded to a multiple of 2^-16
    assert len(np.unique(y)) == 2
    np.testing.assert_allclose(y.max(), 2**16 / round((1 - rate) * 2**16), rtol=1e-7)
    assert abs(y.mean(dtype=np.float64) - 1) < 5 * standard_error / (1 - rate)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_dropout_of_odd_channel_counts(channels):
    y = dropped(np.ones((8, 64, 64, channels), "float32"), SEEDS, 0.5)
    assert y.shape == (8, 64, 64, channels)
    assert (np.abs((y != 0).mean((0, 1, 2)) - 0.5) < 5 * 0.5 / np.sqrt(8 * 64 * 64)).all()


def test_the_two_halves_of_a_word_and_neighbours_are_uncorrelated():
    mask = (dropped(ONES, SEEDS, 0.5) != 0) - 0.5
    pairs = {
        "halves": (mask[:, :16], mask[:, 16:]),
        "channels": (mask[..., 1:], mask[..., :-1]),
        "columns": (mask[:, :, 1:], mask[:, :, :-1]),
        "rows": (mask[:, 1:], mask[:, :-1]),
        "images": (mask[1:], mask[:-1]),
    }
    for name, (a, b) in pairs.items():
        assert abs(4 * (a * b).mean()) < 5 / np.sqrt(a.size), name


@pytest.mark.parametrize("rate, training", [(0.0, True), (1e-7, True), (0.3, False)])
def test_where_dropout_is_the_identity(rate, training):
    y = layers.Dropout(rate)(MAP, seed=tf.constant([1, 2]), training=training)
    np.testing.assert_array_equal(y, MAP)


def test_the_largest_rate_keeps_one_element_in_65536():
    y = dropped(ONES, SEEDS, 1 - 1e-7)
    assert set(np.unique(y)) <= {0, 2**16} and (y != 0).mean() < 2**-13


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_the_mask_is_the_same_in_every_mode(mode):
    def call(x, seed):
        return layers.Dropout(0.3)(x, seed=seed, training=True)

    arguments = tf.ones((2, 4, 6, 7)), tf.constant([3, 7])
    np.testing.assert_array_equal(MODES[mode](call)(*arguments), call(*arguments))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_rates(rate):
    with pytest.raises(InputError, match=r"`dropout` must (lie in \[0, 1\)|be a number). Received: "):
        layers.Dropout(rate)


# Attention.


def test_attention_is_the_definition_added_to_the_raw_input():
    x = normal(2, 3, 5, 8) * 3 + 1
    layer = layers.AttentionBlock(groups=2)
    layer(x)
    randomise(layer)
    scale, offset, qkv, qkv_bias, out, out_bias = (np.asarray(w, np.float64) for w in layer.get_weights())
    h = (group_norm(x, 2) * scale + offset).reshape(2, 15, 8)
    query, key, value = np.split(h @ qkv + qkv_bias, 3, axis=-1)
    logits = query @ key.transpose(0, 2, 1) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = x + (weights @ value @ out + out_bias).reshape(x.shape)
    np.testing.assert_allclose(layer(x), expected, atol=5e-5)


def test_attention_begins_as_nearly_the_identity():
    difference = np.abs(layers.AttentionBlock(groups=2)(MAP) - MAP).max()
    assert 0 < difference < 1e-4


# Timesteps.


@pytest.mark.parametrize("width", [2, 6, 7, 128])
def test_sinusoidal_embedding_is_the_formula(width):
    t = np.array([0, 1, 10, 999])
    half = width // 2
    frequencies = 10_000.0 ** (-np.arange(half) / max(half - 1, 1))
    angles = t[:, np.newaxis] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((4, width % 2))], axis=1)
    embedding = layers.sinusoidal_embedding(t, width)
    assert embedding.shape == (4, width) and embedding.dtype == "float32"
    np.testing.assert_allclose(embedding, expected, atol=999 * 2**-23)  # float32 angles up to 999


def test_sines_stand_before_cosines_and_the_last_frequency_is_a_ten_thousandth():
    at_zero, at_thousand = layers.sinusoidal_embedding(np.array([0, 1000]), 8).numpy()
    assert at_zero.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(at_thousand[[3, 7]], [np.sin(0.1), np.cos(0.1)], rtol=1e-5)


def test_timestep_embedding_is_dense_silu_dense():
    t = np.array([0, 5, 999])
    layer = layers.TimestepEmbedding(6)
    layer(t)
    randomise(layer)
    kernel_1, bias_1, kernel_2, bias_2 = (np.asarray(w, np.float64) for w in layer.get_weights())
    h = layers.sinusoidal_embedding(t, 6).numpy()
    np.testing.assert_allclose(layer(t), silu(h @ kernel_1 + bias_1) @ kernel_2 + bias_2, atol=2e-5)


# Residual block.


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("channels", [8, 4])
def test_residual_block_parts(channels, attention):
    embedding = normal(2, 16)
    block = built(layers.ResidualBlock(channels, groups=2, attention=attention), MAP, embedding)
    assert block(MAP, embedding).shape == (2, 4, 6, channels)
    assert (block.shortcut is not None) == (channels != 8)
    assert (block.attention is not None) == attention


def test_residual_block_begins_as_nearly_the_identity():
    embedding = normal(2, 16)
    block = built(layers.ResidualBlock(8, groups=2, attention=True), MAP, embedding)
    assert 0 < np.abs(block(MAP, embedding) - MAP).max() < 1e-3


def test_residual_block_uses_the_timestep_and_the_dropout_seed():
    block = built(layers.ResidualBlock(8, groups=2, dropout=0.5), MAP, normal(2, 16))
    randomise(block)

    def output(embedding_seed, seed, training):
        embedding = normal(2, 16, seed=embedding_seed)
        return block(MAP, embedding, seed=tf.constant(seed), training=training).numpy()

    assert np.abs(output(0, [0, 0], False) - output(1, [0, 0], False)).max() > 0.1
    np.testing.assert_array_equal(output(0, [0, 1], True), output(0, [0, 1], True))
    assert np.abs(output(0, [0, 1], True) - output(0, [0, 2], True)).max() > 0.1
    np.testing.assert_array_equal(output(0, [0, 1], False), output(0, [0, 2], False))


# Initial weights. The variance of n uniform numbers has the relative standard error 0.9 / sqrt(n).


def assert_uniform(kernel, fan_in, fan_out, scale):
    kernel = np.asarray(kernel, np.float64)
    variance = scale / ((fan_in + fan_out) / 2)
    assert np.abs(kernel).max() <= np.sqrt(3 * variance) * (1 + 1e-6)
    assert abs(kernel.var() / variance - 1) < 5 * 0.9 / np.sqrt(kernel.size)


def test_kernels_have_the_variance_of_the_average_fan():
    block = layers.ResidualBlock(32, groups=8, attention=True)
    block.build((None, 8, 8, 64), (None, 256))
    assert_uniform(block.conv_1.kernel, 9 * 64, 9 * 32, 1)
    assert_uniform(block.timestep.kernel, 256, 32, 1)
    assert_uniform(block.shortcut.kernel, 64, 32, 1)
    assert_uniform(block.conv_2.kernel, 9 * 32, 9 * 32, 1e-10)
    assert_uniform(block.attention.out.kernel, 32, 32, 1e-10)
    for part in np.split(block.attention.qkv.kernel.numpy(), 3, axis=1):
        assert_uniform(part, 32, 32, 1)
    for resampling in (layers.Downsample(), layers.Upsample()):
        resampling.build((None, 8, 8, 32))
        assert_uniform(resampling.weights[0], 9 * 32, 9 * 32, 1)
    assert all(not w.numpy().any() for w in block.weights if w.name in ("bias", "offset"))
