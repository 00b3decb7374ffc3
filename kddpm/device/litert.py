"""`.tflite` files: conversion from a SavedModel, quantisation, inspection and execution.

LiteRT is imported inside the functions that use it, because a plain install has none.
"""

import collections
import contextlib
import copy
import io
import logging
import os
import re

import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError

# Not quantised: the means and variances of `GroupNormalization`, and the first and last convolution, which are small
# and see the picture itself (measured: benchmarks/README.md). The quantizer matches an operator by the name of its
# output; the last convolution's is StatefulPartitionedCall if it is also the output of a signature.
_QUANTIZED = r"^(?!.*(/einsum|/conv_in|/conv_out|StatefulPartitionedCall)).*$"

MIN_RUNTIME_VERSION = "min_runtime_version"  # the name of this metadata in a file, which TensorFlow chose
_OLDEST_RUNTIME = (2, 7, 0)  # of those tried (docs/devices.md)
_OLDEST_WITH_INT8_TRANSPOSE_CONV = (2, 17, 0)  # LiteRT 1.0; tflite-runtime 2.14 stops with an error


def convert(saved_model: str | os.PathLike, signature_keys: list[str]) -> bytes:
    """Convert a SavedModel to a float32 `.tflite` with its signatures, of builtin operators only.

    Raises:
        InputError: the model needs operators that TFLite lacks; the message names them.
    """
    try:
        with _quiet():
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=signature_keys)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            return converter.convert()
    except Exception as error:  # the converter's own class is private
        names = re.findall(r"(?:TF Select|Custom) ops: (.+)|'tf\.(\w+)' op is neither", str(error))
        reason = ", ".join(sorted({name for pair in names for name in pair if name}))
        if not reason:
            raise
        raise InputError(f"The network must consist of builtin TFLite operators. Received: {reason}") from None


def quantize(content: bytes, precision: str) -> bytes:
    """Return the same graph with smaller weights, in the forms that every runtime of docs/devices.md computes right.

    Args:
        content: a float32 `.tflite`.
        precision: "float32" = unchanged; "float16" = weights and biases of 16 bits, computation in float32; "int8" =
            weights of 8 bits, with a scale for each output channel of a convolution and one for each dense layer, and
            activations quantised at run time (dynamic range). Normalisation, the first and the last convolution, noise
            and schedule stay unchanged.
    """
    if precision == "float32":
        return content
    return _to_float16(content) if precision == "float16" else _to_int8(content)


def _to_int8(content: bytes) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    operations, granularities = qtyping.TFLOperationName, qtyping.QuantGranularity
    recipe = recipe_manager.RecipeManager()
    for operation, granularity in (
        (operations.CONV_2D, granularities.CHANNELWISE),
        (operations.CONV_2D_TRANSPOSE, granularities.CHANNELWISE),
        # tflite-runtime 2.14 computes a FULLY_CONNECTED with a scale for each channel wrong, without an error.
        (operations.FULLY_CONNECTED, granularities.TENSORWISE),
    ):
        recipe.add_dynamic_config(_QUANTIZED, operation, num_bits=8, granularity=granularity)
    with _quiet():
        quantized = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(
            enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(quantized.quantized_model)


def _to_float16(content: bytes) -> bytes:
    """Store weights and biases in float16, each followed by a DEQUANTIZE, as TensorFlow's converter does.

    A float32 bias beside a float16 kernel is misread by XNNPACK in LiteRT 1.1 to 1.3.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    kinds = _kinds(model)
    operators = schema.BuiltinOperator
    constants = {operators.CONV_2D: (1, 2), operators.FULLY_CONNECTED: (1, 2), operators.TRANSPOSE_CONV: (1, 3)}
    dequantize = schema.OperatorCodeT()
    dequantize.builtinCode = dequantize.deprecatedBuiltinCode = operators.DEQUANTIZE
    dequantize.version = 3  # the first that takes float16
    model.operatorCodes.append(dequantize)
    for graph in model.subgraphs:
        chosen = {
            int(operator.inputs[slot])
            for operator in graph.operators
            if re.match(_QUANTIZED, graph.tensors[operator.outputs[0]].name.decode())
            for slot in constants.get(kinds[operator.opcodeIndex], ())
            if slot < len(operator.inputs) and operator.inputs[slot] >= 0
        }
        dequantized = {}
        for index in sorted(chosen):
            wide = graph.tensors[index]
            data = model.buffers[wide.buffer].data
            if data is None or wide.type != schema.TensorType.FLOAT32:
                continue
            half = copy.copy(wide)
            half.type, half.buffer = schema.TensorType.FLOAT16, len(model.buffers)
            model.buffers.append(schema.BufferT(data=data.view(np.float32).astype(np.float16).view(np.uint8)))
            wide.buffer = 0  # computed, no longer constant
            dequantized[index] = schema.OperatorT(opcodeIndex=len(kinds), inputs=[len(graph.tensors)], outputs=[index])
            graph.tensors.append(half)
        ordered = []
        for operator in graph.operators:  # each as late as it can be, so that weights share their memory at run time
            ordered += [dequantized.pop(index) for index in operator.inputs if index in dequantized]
            ordered.append(operator)
        graph.operators = ordered
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@contextlib.contextmanager
def _quiet():
    """Suppress the converters' warnings, such as that gradients are not exported, and their progress bars."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def operators(content: bytes) -> dict[str, int]:
    """Return how often each builtin operator occurs in a `.tflite`, most frequent first.

    Raises:
        InputError: the file has operators that are not builtin; the message names them.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    foreign = sorted({code.customCode.decode() for code in model.operatorCodes if code.customCode})
    if foreign:
        raise InputError(f"A .tflite must consist of builtin operators. Received: {', '.join(foreign)}")
    names = operator_names(model)
    uses = collections.Counter(names[o.opcodeIndex] for graph in model.subgraphs for o in graph.operators)
    return dict(uses.most_common())


def min_runtime_version(content: bytes) -> str:
    """Return the oldest TensorFlow Lite that a `.tflite` needs, such as "2.13.0"; LiteRT 1.0 counts as 2.17.

    It is what the converter wrote, or more where more was found to be needed (docs/devices.md).
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    versions: list[tuple[int, ...]] = [_OLDEST_RUNTIME]
    for entry in model.metadata or ():
        if entry.name == MIN_RUNTIME_VERSION.encode():
            text = model.buffers[entry.buffer].data.tobytes().decode()
            versions.append(tuple(map(int, re.findall(r"\d+", text))))
    kinds = _kinds(model)
    for graph in model.subgraphs:
        for operator in graph.operators:
            if kinds[operator.opcodeIndex] == schema.BuiltinOperator.TRANSPOSE_CONV:
                if graph.tensors[operator.inputs[1]].type == schema.TensorType.INT8:
                    versions.append(_OLDEST_WITH_INT8_TRANSPOSE_CONV)
    return ".".join(map(str, max(versions)))


def operator_names(model) -> list[str]:
    """Return the name of each of a model's operator codes, of the model in the schema's object form."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    return [names[kind] for kind in _kinds(model)]


def _kinds(model) -> list[int]:
    """Return the builtin operator that each of a model's operator codes stands for."""
    # Codes above 127 are stored in a second field.
    return [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]


def delegation(content: bytes) -> tuple[float, dict[str, int]]:
    """Return the fraction of the first graph's operators that run in the XNNPACK delegate, and counts of the others."""
    from ai_edge_litert import interpreter

    runtime = interpreter.Interpreter(model_content=content)
    runtime.allocate_tensors()
    details = runtime._get_ops_details()
    delegates = [op for op in details if op["op_name"] == "DELEGATE"]
    outside = {op["index"]: op["op_name"] for op in details if op["op_name"] != "DELEGATE"}
    count = len(outside)
    producers = {output: op for op in details if op["op_name"] != "DELEGATE" for output in op["outputs"]}
    for delegate in delegates:  # remove the operators between its inputs and its outputs
        waiting = list(delegate["outputs"])
        while waiting:
            op = producers.get(waiting.pop())
            if op is not None and outside.pop(op["index"], None):
                waiting += set(op["inputs"]) - set(delegate["inputs"])
    return 1 - len(outside) / count, dict(collections.Counter(outside.values()).most_common())


def load(content: bytes, threads: int = 2, xnnpack: bool = True) -> dict:
    """Return the signatures of a `.tflite`: name -> function from arrays by name to arrays by name.

    Args:
        content: a `.tflite`.
        threads: number of threads of the runtime.
        xnnpack: whether the XNNPACK delegate may run operators.
    """
    from ai_edge_litert import interpreter

    resolver = interpreter.OpResolverType
    runtime = interpreter.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=resolver.AUTO if xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    return {name: runtime.get_signature_runner(name) for name in runtime.get_signature_list()}
