import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

import kddpm
from kddpm import device
from kddpm.device import export, litert, packing, signatures
from kddpm.sampling import samplers


@pytest.fixture(scope="module")
def converted(trained_like, tmp_path_factory):
    """A float32 file of a small model, as the converter leaves it."""
    table = samplers.step_table(samplers.Ancestral(), trained_like.schedule, 3)
    folder = tmp_path_factory.mktemp("converted")
    functions = signatures.signatures(trained_like.denoiser, table, 1)
    export._save(trained_like.denoiser, functions, folder)
    return litert.convert(folder, list(functions))


def outputs(content, xnnpack=True):
    """What every signature gives."""
    run = litert.load(content, xnnpack=xnnpack)
    seed, index, t = (np.array([n], np.int32) for n in (5, 1, 7))
    x = run["start"](seed=seed)["x"]
    return {
        "start": x,
        "generate": run["generate"](seed=seed)["image"],
        "step": run["step"](x=x, index=index, seed=seed)["x"],
        "finish": run["finish"](x=x)["image"],
        "denoise": run["denoise"](x=x, t=t)["eps"],
    }


@pytest.mark.parametrize("precision", device.PRECISIONS)
@pytest.mark.parametrize("xnnpack", [True, False])
def test_packing_changes_no_bit_of_any_output(converted, precision, xnnpack):
    quantized = litert.quantize(converted, precision)
    before, after = outputs(quantized, xnnpack), outputs(packing.pack(quantized, "step"), xnnpack)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.mark.parametrize("precision", device.PRECISIONS)
def test_packing_says_everything_once(converted, precision):
    quantized = litert.quantize(converted, precision)
    packed = packing.pack(quantized, "step")
    assert len(packed) < len(quantized) - 100_000  # of some 400 KB beside the weights
    model = schema.ModelT.InitFromPackedBuf(packed)
    contents = [bytes(b.data) for b in model.buffers if b.data is not None]
    assert len(contents) == len(set(contents))
    assert len(packed) == pytest.approx(len(packing.pack(packed, "step")), rel=1e-3)


def test_weights_are_aligned_in_the_file(converted):
    packed = packing.pack(converted, "step")
    model = schema.Model.GetRootAsModel(packed, 0)
    addresses = [
        model.Buffers(i)._tab.Vector(model.Buffers(i)._tab.Offset(4))
        for i in range(model.BuffersLength())
        if not model.Buffers(i).DataIsNone()
    ]
    assert len(addresses) > 20
    assert all(address % 16 == 0 for address in addresses)


@pytest.mark.parametrize("first", device.SIGNATURES)
def test_the_first_graph_is_the_one_asked_for(converted, first):
    packed = packing.pack(converted, first)
    model = schema.ModelT.InitFromPackedBuf(packed)
    assert {s.signatureKey.decode(): s.subgraphIndex for s in model.signatureDefs}[first] == 0
    np.testing.assert_array_equal(outputs(packed)["generate"], outputs(converted)["generate"])


def test_quantizing_leaves_noise_schedule_and_statistics_alone(converted):
    """Of int8 are the kernels, but not the first and the last; int16 is the noise table, whole."""
    model = schema.ModelT.InitFromPackedBuf(packing.pack(litert.quantize(converted, "int8"), "step"))
    tensors = [t for graph in model.subgraphs for t in graph.tensors if model.buffers[t.buffer].data is not None]
    kinds = {(t.type, tuple(t.shape)) for t in tensors}
    of_type = lambda kind: {shape for number, shape in kinds if number == kind}  # noqa: E731
    assert of_type(schema.TensorType.INT16) == {(2**15,)}
    assert (8, 3, 3, 1) in of_type(schema.TensorType.FLOAT32) and (1, 3, 3, 8) in of_type(schema.TensorType.FLOAT32)
    assert not {(8, 3, 3, 1), (1, 3, 3, 8)} & of_type(schema.TensorType.INT8)
    assert {(8, 3, 3, 8), (16, 3, 3, 8), (16, 2, 2, 16), (32, 32)} <= of_type(schema.TensorType.INT8)
    assert {(4, 8), (8, 4), (4, 16), (16, 4)} <= of_type(schema.TensorType.FLOAT32)  # channels to groups and back
    assert litert.quantize(converted, "float32") is converted


def constants_of(content):
    """For each convolution and dense layer: its kind, and its kernel's and its bias's number type and scales."""
    model, found = schema.ModelT.InitFromPackedBuf(content), []
    for graph in model.subgraphs:
        sources = {int(o.outputs[0]): o for o in graph.operators}
        for operator in graph.operators:
            kind = litert._kinds(model)[operator.opcodeIndex]
            if kind in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED):
                given = [int(i) for i in operator.inputs[1:] if i >= 0]
                tensors = [graph.tensors[sources[i].inputs[0] if i in sources else i] for i in given]
                scales = tensors[0].quantization and tensors[0].quantization.scale
                found.append((kind, [t.type for t in tensors], tensors[0].shape, scales))
    return found


def test_a_float16_kernel_has_a_float16_bias(converted):
    """With a float32 bias beside it, LiteRT 1.1 to 1.3 paint white."""
    half, kinds = schema.TensorType.FLOAT16, schema.BuiltinOperator
    found = [(kind, types) for kind, types, *_ in constants_of(litert.quantize(converted, "float16")) if half in types]
    assert {kind for kind, _ in found} == {kinds.CONV_2D, kinds.FULLY_CONNECTED}
    assert all(types == [half, half] for _, types in found)
    before = constants_of(converted)
    assert len(found) > len(before) / 3 and not any(half in types for _, types, *_ in before)


def test_an_int8_dense_layer_has_one_scale_and_a_convolution_one_a_channel(converted):
    """With one a channel, tflite-runtime 2.14 computes dense layers wrong."""
    int8, kinds = schema.TensorType.INT8, schema.BuiltinOperator
    found = [entry for entry in constants_of(litert.quantize(converted, "int8")) if entry[1][0] == int8]
    assert {kind for kind, *_ in found} == {kinds.CONV_2D, kinds.FULLY_CONNECTED}
    for kind, _, shape, scales in found:
        assert len(scales) == (shape[0] if kind == kinds.CONV_2D else 1)


def test_a_file_says_which_runtime_it_needs(converted):
    """RIGHT_SHIFT and BITWISE_XOR came with TensorFlow 2.13, as the converter says."""
    packed = packing.pack(litert.quantize(converted, "int8"), "step")
    assert litert.min_runtime_version(converted) == litert.min_runtime_version(packed) == "2.13.0"
    model = schema.ModelT.InitFromPackedBuf(packed)
    assert [entry.name for entry in model.metadata] == [b"min_runtime_version"]


@pytest.mark.parametrize(("precision", "version"), [("float32", "2.7.0"), ("float16", "2.7.0"), ("int8", "2.17.0")])
def test_a_runtime_that_stops_at_an_operator_is_not_enough(precision, version, tmp_path):
    """tflite-runtime 2.14 computes no TRANSPOSE_CONV with an int8 kernel; the converter asks for an older one."""
    layer = tf.keras.layers.Conv2DTranspose(8, 3)
    layer.build((1, 8, 8, 8))
    function = tf.function(lambda x: {"y": tf.tanh(layer(x))}, [tf.TensorSpec([1, 8, 8, 8], name="x")])
    module = tf.Module()
    module.weights = [weight.value for weight in layer.weights]
    tf.saved_model.save(module, str(tmp_path), signatures={"step": function})
    content = litert.convert(tmp_path, ["step"])
    packed = packing.pack(litert.quantize(content, precision), "step")
    assert litert.min_runtime_version(packed) == version
    assert litert.load(packed)["step"](x=np.ones((1, 8, 8, 8), np.float32))["y"].shape == (1, 10, 10, 8)


def test_operators_are_counted_and_builtin(converted):
    counted = litert.operators(converted)
    assert {"CONV_2D", "FULLY_CONNECTED", "WHILE", "BITWISE_XOR", "GATHER", "SOFTMAX"} <= set(counted)
    assert counted["WHILE"] == 1 and counted["SOFTMAX"] % 3 == 0  # step, denoise and the body of the loop
    # Of these XNNPACK takes none, or is slower with it.
    assert not {"TILE", "RESIZE_NEAREST_NEIGHBOR", "BROADCAST_TO", "TRANSPOSE_CONV", "PACK"} & set(counted)
    assert list(counted.values()) == sorted(counted.values(), reverse=True)


def test_foreign_operators_are_named(converted):
    model = schema.ModelT.InitFromPackedBuf(converted)
    model.operatorCodes[0].customCode = b"FlexErf"
    builder = packing._Builder(len(converted))
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(kddpm.InputError, match=r"must consist of builtin operators\. Received: FlexErf"):
        litert.operators(bytes(builder.Output()))


def test_delegation_is_counted_operator_by_operator():
    """A convolution and a sum go to XNNPACK; a sum of integers between them does not."""

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 4]), tf.TensorSpec([4], tf.int32)])
    def mixed(x, n):
        y = tf.nn.conv2d(x, np.ones((3, 3, 4, 4), np.float32), 1, "SAME")
        return tf.nn.relu6(y * y), n + 1

    content = tf.lite.TFLiteConverter.from_concrete_functions([mixed.get_concrete_function()]).convert()
    uses = sum(litert.operators(content).values())
    share, outside = litert.delegation(content)
    assert share == pytest.approx((uses - 1) / uses) and outside == {"ADD": 1}


@pytest.mark.parametrize("precision", device.PRECISIONS)
def test_the_whole_network_is_delegated(converted, precision):
    """Outside XNNPACK are the integers of the noise and what looks up the step."""
    packed = packing.pack(litert.quantize(converted, precision), "denoise")
    assert litert.delegation(packed)[0] > 0.97
    outside = litert.delegation(packing.pack(packed, "step"))[1]
    integers = {"ADD", "SUB", "MUL", "RIGHT_SHIFT", "BITWISE_XOR", "GATHER", "CAST", "FILL", "MINIMUM", "MAXIMUM"}
    shapes = {"RESHAPE", "STRIDED_SLICE", "CONCATENATION"}
    assert {"RIGHT_SHIFT", "BITWISE_XOR", "GATHER"} <= set(outside) <= integers | shapes
