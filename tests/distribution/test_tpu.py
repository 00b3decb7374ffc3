"""What TPUs refuse is in none of the graphs of training, evaluation and sampling; docs/tpu.md says what is left open.

Graphs are gone over op by op, those of loops and branches too, and lowered by XLA, for the CPU: no TPU is needed.
"""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import OneConv
from helpers.small_models import Replica
from tensorflow.python.framework import kernels

import kddpm
from kddpm import data
from kddpm.sampling import generation, samplers, walks
from kddpm.theory import parametrization, schedules

BATCH = 4
# tensorflow/core/tpu/tpu_defs.h lists float64 too, which TPUs compute in software.
NUMBERS = {tf.float32, tf.bfloat16, tf.int64, tf.uint64, tf.int32, tf.uint32, tf.int16, tf.uint8, tf.bool}
HANDLES = {tf.resource, tf.variant}  # of variables, of the arrays of a loop
# In HLO: calls out of the program, talk with the host, sizes up to a bound, float64.
REFUSED_BY_NAME = r"custom-call|infeed|outfeed|\bsend\(|\brecv\(|\[<=|\bf64\["


@pytest.fixture(scope="module", autouse=True)
def kernels_of_xla():
    """They are registered when XLA is first used."""
    tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(0))


@functools.cache
def has_kernel(kind):
    """Whether XLA can compile ops of this kind."""
    return any(kernel.device_type == "XLA_CPU_JIT" for kernel in kernels.get_registered_kernels_for_op(kind).kernel)


def graphs_within(graph, known=None):
    """A graph and those of all functions that it calls: bodies of loops, branches."""
    known = {} if known is None else known
    known[graph.name] = graph
    for operation in graph.get_operations():
        for attribute in operation.node_def.attr.values():
            for function in [*attribute.list.func, *([attribute.func] if attribute.HasField("func") else [])]:
                if function.name not in known:
                    known[function.name] = graph._get_function(function.name).graph
                    graphs_within(known[function.name], known)
    return list(known.values())


def refused(function, *arguments):
    """What a TPU would not take of a `tf.function`, one line each; `arguments` are tensors or their specs."""
    found = []
    for graph in graphs_within(function.get_concrete_function(*arguments).graph):
        results = {id(tensor) for tensor in graph.outputs}
        for operation in graph.get_operations():
            if operation.type != "Placeholder" and not has_kernel(operation.type):
                found.append(f"{operation.type} has no kernel: {operation.name}")
            for tensor in operation.outputs:
                if not tensor.consumers() and id(tensor) not in results:
                    continue
                if tensor.dtype not in NUMBERS | HANDLES:
                    found.append(f"{tensor.dtype.name}: {operation.name}")
                if tensor.dtype not in HANDLES and not tensor.shape.is_fully_defined():
                    found.append(f"shape {tensor.shape}: {operation.name}")
    return found


def refused_in_hlo(function, *arguments):
    """The same of what XLA makes of it; `arguments` are tensors."""
    program = function.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert "ENTRY" in program
    constants = set(re.findall(r"%(\S+) = s32\[\] constant\(", program))
    sizes = re.findall(r"set-dimension-size\(.* %([^ ,)]+)\)", program)  # XLA forgets those that are constants
    return re.findall(REFUSED_BY_NAME, program) + [f"size {size}" for size in sizes if size not in constants]


def zeros_like(spec):
    return tf.nest.map_structure(lambda one: tf.zeros(one.shape, one.dtype), spec)


# What is looked for is found.


def in_a_loop(bad):
    return lambda x: tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, bad(x)), (0, x))[1]


def in_a_branch(bad):
    return lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: bad(x), lambda: x)


def by_host(x):
    return tf.ensure_shape(tf.py_function(lambda x: x, [x], tf.float32), x.shape)


def with_text(x):
    tf.print(x)
    return x


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (by_host, "EagerPyFunc has no kernel"),
        (with_text, "string"),
        (lambda x: tf.reduce_sum(tf.where(x > 0)) + 0 * tf.cast(x, tf.int64), "shape (None, 1)"),
        (lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)) + x, "shape (None,)"),
        (lambda x: tf.reduce_sum(tf.unique(x)[0]) + x, "shape (None,)"),
        (lambda x: x[: tf.cast(x[0], tf.int32)], "shape (None,)"),
        (lambda x: tf.cast(tf.cast(x, tf.float64), tf.float32), "float64"),
        (in_a_loop(by_host), "EagerPyFunc has no kernel"),
        (in_a_branch(with_text), "string"),
    ],
)
def test_the_scan_sees_what_is_refused(bad, message):
    assert any(message in line for line in refused(tf.function(bad, autograph=False), tf.ones(8)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: tf.boolean_mask(x, x > 0) * 2, "[<="),
        (lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)), "size "),
        (in_a_loop(lambda x: tf.cast(tf.cast(x, tf.float64) * 3, tf.float32)), "f64["),
    ],
)
def test_the_look_at_hlo_sees_what_is_refused(bad, message):
    found = refused_in_hlo(tf.function(bad, jit_compile=True, autograph=False), tf.ones(8))
    assert any(message in line for line in found), found


def test_the_scan_passes_what_is_not():
    good = tf.function(in_a_loop(in_a_branch(lambda x: tf.ensure_shape(x * 2, [8]))), jit_compile=True, autograph=False)
    assert refused(good, tf.ones(8)) == [] == refused_in_hlo(good, tf.ones(8))


# Training and evaluation.

KINDS = {
    "float32": ({}, {}),
    "classes, dropout": ({"num_classes": 10, "dropout": 0.1}, {"label_dropout": 0.5}),
    "micro-batches": ({}, {"accumulation": 2}),
    "bfloat16, learned variance, importance": (
        {"dtype": "mixed_bfloat16", "out_channels": 2},
        {"weighting": "hybrid", "variance": "learned", "timestep_sampling": "importance"},
    ),
}


def batches_for(model, steps):
    return data.batches(
        data.load("digits"), BATCH, seed=0, start=0, stop=steps, with_labels=bool(model.network.num_classes)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_is_what_tpus_take(make_model, kind):
    network, choices = KINDS[kind]
    model = make_model({"multipliers": (1,), "attention_resolutions": (8,), **network}, **choices)
    model.compile(keras.optimizers.Adam(1e-3))
    batch = batches_for(model, 1).element_spec
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    assert refused(step, batch) == []
    assert refused(tf.function(model.test_step, jit_compile=True, autograph=False), batch) == []
    if "bfloat16" in kind:
        assert refused_in_hlo(step, zeros_like(batch)) == []


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
def test_the_draws_of_a_core_are_static_although_its_number_is_not(make_model, monkeypatch, timestep_sampling):
    network = {"num_classes": 10, "multipliers": (1,)}
    model = make_model(network, timestep_sampling=timestep_sampling, label_dropout=0.5)

    @tf.function(jit_compile=True, autograph=False)
    def draw(number, x_0, label):
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: Replica(number))
        return model._draw(model.step, x_0, label)

    specs = tf.TensorSpec([], tf.int32), tf.TensorSpec([BATCH, 8, 8, 1]), tf.TensorSpec([BATCH], tf.int32)
    assert refused(draw, *specs) == []


def test_training_and_evaluation_are_traced_once():
    keras.utils.set_random_seed(0)
    model = kddpm.DiffusionModel(OneConv((8, 8, 1)), schedules.linear(20, 1e-3, 0.5))
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=True)
    batches = batches_for(model, 6)
    for name in ("train_step", "test_step"):
        step = tf.function(getattr(model, name), jit_compile=True, autograph=False)
        for batch in batches:
            step(batch)
        assert step.experimental_get_tracing_count() == 1
    assert int(model.step.numpy()) == 6


# Sampling.


@pytest.mark.parametrize("name", samplers.BY_NAME)
def test_a_walk_is_what_tpus_take(make_model, name):
    """With guidance and dynamic clipping, where a sampler has a memory and where it has none."""
    model = make_model({"multipliers": (1,), "attention_resolutions": (8,), "num_classes": 3})
    table = model.denoiser.steps(samplers.by_name(name, clip="dynamic"), 3)
    begin, walk, _ = generation._walk_functions(model.denoiser, table, BATCH, 2.0, None, jit_compile=True)
    each = tf.range(BATCH)
    state = walks.initial_state(tf.zeros([BATCH, 8, 8, 1]), table)
    arguments = state, each, each % 3, tf.constant(2.0), tf.constant(0), tf.constant(table.num_rows)
    for function, given in ((begin, [each, None]), (walk, arguments)):
        assert refused(function, *given) == [] == refused_in_hlo(function, *given)


def test_a_walk_is_traced_once(make_model):
    model = kddpm.DiffusionModel(OneConv((8, 8, 1)), schedules.linear(20, 1e-3, 0.5))
    for seeds in ([1, 2, 3], [4, 5, 6, 7], np.arange(9)):
        model.generate(seeds, "ddim", 5, batch_size=4, return_trajectory=3, jit_compile=True)
    (functions,) = model.denoiser._compiled.values()
    assert [function.experimental_get_tracing_count() for function in functions] == [1, 1, 0]  # no x_0 was asked for
