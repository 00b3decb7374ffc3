"""Adam by one operator a weight, against Keras's own; and which optimizers are left to Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kddpm.model import gradients as kd_gradients

SHAPES = [(3, 2), (5,)]


def path_of(make_optimizer, apply, steps=20):
    """The weights after steps with the same gradients, and the operators of a step."""
    rng = np.random.default_rng(0)
    weights = [keras.Variable(rng.normal(size=shape).astype("float32"), name=f"w{len(shape)}") for shape in SHAPES]
    optimizer = make_optimizer()
    optimizer.build(weights)
    step = tf.function(lambda *gradients: apply(optimizer, gradients, weights), autograph=False)
    for _ in range(steps):
        given = [tf.constant(rng.normal(size=shape) * 10.0 ** rng.integers(-6, 2), tf.float32) for shape in SHAPES]
        step(*given)
    graph = step.get_concrete_function(*given).graph.as_graph_def()
    operators = {node.op for part in (graph.node, *(f.node_def for f in graph.library.function)) for node in part}
    return [weight.numpy() for weight in weights], int(optimizer.iterations.numpy()), operators


def descend(optimizer, gradients, weights):
    """One step of `descend` without clipping."""
    kd_gradients.descend(optimizer, weights, gradients, tf.constant(1.0), None, tf.constant(True))


def of_keras(optimizer, gradients, weights):
    optimizer.apply(gradients, weights)


RATE = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1e-2)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"learning_rate": RATE}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}],
    ids=["defaults", "schedule", "others"],
)
def test_adam_is_that_of_keras(arguments):
    make = lambda: keras.optimizers.Adam(**{"learning_rate": 1e-2, **arguments})  # noqa: E731
    ours, count, operators = path_of(make, descend)
    theirs, count_of_keras, _ = path_of(make, of_keras)
    assert "ResourceApplyAdam" in operators
    assert count == count_of_keras == 20
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class OtherAdam(keras.optimizers.Adam):
    """An Adam of somebody's, which may do anything."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(1e-2, amsgrad=True),
        lambda: keras.optimizers.Adam(1e-2, weight_decay=0.1),
        lambda: keras.optimizers.Adam(1e-2, clipnorm=0.1),
        lambda: keras.optimizers.Adam(1e-2, global_clipnorm=0.1),
        lambda: keras.optimizers.Adam(1e-2, use_ema=True),
        lambda: keras.optimizers.AdamW(1e-2),
        lambda: keras.optimizers.SGD(1e-2),
        lambda: OtherAdam(1e-2),
    ],
    ids=["amsgrad", "decay", "clipnorm", "global_clipnorm", "ema", "AdamW", "SGD", "subclass"],
)
def test_what_is_not_plain_adam_is_left_to_keras(make):
    ours, _, operators = path_of(make, descend)
    theirs, _, _ = path_of(make, of_keras)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "ResourceApplyAdam" not in operators


def test_a_weight_with_a_constraint_is_left_to_keras():
    weight = keras.Variable(np.ones(3, "float32"))
    weight.constraint = keras.constraints.NonNeg()
    optimizer = keras.optimizers.Adam(10.0)
    optimizer.build([weight])
    descend(optimizer, [tf.ones(3)], [weight])
    np.testing.assert_array_equal(weight.numpy(), np.zeros(3))
