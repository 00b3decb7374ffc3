"""The operation of `fused` against its definition in float64, and its gradients against central differences of it."""

import numpy as np
import pytest
import tensorflow as tf

from kddpm.networks import fused, layers

SHAPE, GROUPS, EPSILON = (3, 4, 5, 8), 2, 1e-6


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def values(seed=0):
    """Input, scale, offset and shift, with means that differ from 0."""
    return normal(*SHAPE, seed=seed) + 0.5, 1 + normal(8, seed=1), normal(8, seed=2), normal(3, 8, seed=3)


def defined(x, scale, offset, shift, activate, mask):
    """What the operation is, in float64."""
    h = (x + shift[:, None, None]).reshape(*SHAPE[:3], GROUPS, -1)
    deviation = np.sqrt(h.var((1, 2, 4), keepdims=True) + EPSILON)
    y = ((h - h.mean((1, 2, 4), keepdims=True)) / deviation).reshape(SHAPE) * scale + offset
    return (y / (1 + np.exp(-y)) if activate else y) * mask


def applied(arguments, **options):
    return fused.normalized(*arguments[:3], GROUPS, EPSILON, shift=arguments[3], **options)


def tensors(dtype=tf.float32):
    x, *others = values()
    return [tf.constant(x, dtype), *(tf.constant(value, tf.float32) for value in others)]


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("kept", [2**16, 3 * 2**14])
def test_it_is_the_definition_and_so_is_its_gradient(activate, kept):
    seeds = tf.constant([3, 4, 5])
    mask = fused.dropout_mask(seeds, SHAPE, kept).numpy() * (2**16 / kept)
    upstream = normal(*SHAPE, seed=4)
    given = tensors()
    with tf.GradientTape() as tape:
        tape.watch(given)
        y = applied(given, activate=activate, kept_of_65536=kept, seed=seeds)
        total = tf.reduce_sum(y * upstream.astype("float32"))
    np.testing.assert_allclose(y, defined(*values(), activate, mask), atol=5e-6)
    for index, gradient in enumerate(tape.gradient(total, given)):
        gradient = gradient.numpy()
        for place in np.ndindex(gradient.shape):
            moved = []
            for step in (1e-5, -1e-5):
                arguments = [value.copy() for value in values()]
                arguments[index][place] += step
                moved.append((defined(*arguments, activate, mask) * upstream).sum())
            assert gradient[place] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=2e-5)


def test_batches_of_unknown_size():
    seeds, given = tf.constant([3, 4, 5]), tensors()

    def gradients(x, *others):
        with tf.GradientTape() as tape:
            tape.watch([x, *others])
            y = applied([x, *others], activate=True, kept_of_65536=3 * 2**14, seed=seeds)
        return y, tape.gradient(y, [x, *others])

    specs = [tf.TensorSpec((None, *SHAPE[1:])), tf.TensorSpec((8,)), tf.TensorSpec((8,)), tf.TensorSpec((None, 8))]
    unknown = tf.function(gradients, input_signature=specs, autograph=False)
    for ours, theirs in zip(tf.nest.flatten(unknown(*given)), tf.nest.flatten(gradients(*given)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_once_at_the_end():
    x, *others = tensors(tf.bfloat16)
    y = applied([x, *others], activate=True)
    exact = defined(x.numpy().astype(float), *values()[1:], True, 1.0)
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float64), exact, rtol=2**-8, atol=1e-5)


def test_only_the_input_is_kept_for_the_gradient():
    """The graph between operation and gradient hands on x, what it was given, and numbers of (B, C)."""

    def gradient(x, *others):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = applied([x, *others], activate=True)
        return tape.gradient(y, x)

    graph = tf.function(gradient, autograph=False).get_concrete_function(*tensors()).graph
    calls = [op for op in graph.get_operations() if op.type in ("PartitionedCall", "StatefulPartitionedCall")]
    backward = max(calls, key=lambda op: len(op.inputs))
    large = {tensor.ref() for tensor in backward.inputs if tensor.shape.rank == 4}
    assert len(large) == 2  # x and the gradient by the result


def test_it_is_used_inside_its_context_alone():
    layer = layers.GroupNormalization(GROUPS)
    layer.build(SHAPE)

    def compiled():
        graph = tf.function(lambda x: layer(x), autograph=False).get_concrete_function(tensors()[0]).graph
        return any("_XlaMustCompile" in function.attr for function in graph.as_graph_def().library.function)

    assert not compiled()
    with fused.allowed():
        assert compiled()
    assert not compiled()


@pytest.mark.parametrize("side", [1, 4])
def test_every_trace_has_the_same_bits(side):
    """TensorFlow may not take the gradient of one bias for that of another, as it does within one operation."""
    block = layers.ResidualBlock(8, groups=2)
    x, embedding = (tf.constant(normal(*shape), tf.float32) for shape in ((4, side, side, 8), (4, 16)))
    block.build(x.shape, embedding.shape)

    def gradients(x, embedding):
        with tf.GradientTape() as tape, fused.allowed():
            y = tf.reduce_sum(tf.square(block(x, embedding, training=True)))
        return tape.gradient(y, [weight.value for weight in block.trainable_weights])

    traces = [tf.function(gradients, autograph=False)(x, embedding) for _ in range(6)]
    for other in traces[1:]:
        for ours, theirs in zip(traces[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_maps_of_unknown_size_take_the_plain_form():
    layer = layers.GroupNormalization(GROUPS)
    layer.build(SHAPE)
    with fused.allowed():
        signature = [tf.TensorSpec((None, None, None, 8))]
        y = tf.function(lambda x: layer(x), input_signature=signature, autograph=False)(tensors()[0])
        np.testing.assert_allclose(y, layer(tensors()[0]), atol=1e-5)


def test_dropping_without_a_seed_is_refused():
    with pytest.raises(ValueError, match="seed is needed"):
        applied(tensors(), kept_of_65536=2**15)
