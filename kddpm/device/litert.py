"""`.tflite` files: conversion from a SavedModel, quantisation, inspection and execution.

LiteRT is imported inside the functions that use it, because a plain install has none.
"""

import collections
import contextlib
import io
import logging
import os
import re

import tensorflow as tf

from kddpm.base.errors import InputError

# Not quantised: the means and variances of `GroupNormalization`, and the first and last convolution, which are small
# and see the picture itself (measured: benchmarks/README.md). The quantizer matches an operator by the name of its
# output; the last convolution's is StatefulPartitionedCall if it is also the output of a signature.
_QUANTIZED = r"^(?!.*(/einsum|/conv_in|/conv_out|StatefulPartitionedCall)).*$"


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
    """Return the same graph with smaller weights.

    Args:
        content: a float32 `.tflite`.
        precision: "float32" = unchanged; "float16" = weights of 16 bits, computation in float32; "int8" = weights of 8
            bits with a scale for each output channel, and activations quantised at run time (dynamic range).
            Normalisation, the first and the last convolution, noise and schedule stay unchanged.
    """
    if precision == "float32":
        return content
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    operations = qtyping.TFLOperationName
    for operation in (operations.CONV_2D, operations.CONV_2D_TRANSPOSE, operations.FULLY_CONNECTED):
        if precision == "int8":
            recipe.add_dynamic_config(_QUANTIZED, operation, num_bits=8)
        else:
            recipe.add_weight_only_config(
                _QUANTIZED, operation, num_bits=16, algorithm_key=recipe_manager.AlgorithmName.FLOAT_CASTING
            )
    with _quiet():
        quantized = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(
            enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(quantized.quantized_model)


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
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    foreign = sorted({code.customCode.decode() for code in model.operatorCodes if code.customCode})
    if foreign:
        raise InputError(f"A .tflite must consist of builtin operators. Received: {', '.join(foreign)}")
    # Codes above 127 are stored in a second field.
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    uses = collections.Counter(names[codes[o.opcodeIndex]] for graph in model.subgraphs for o in graph.operators)
    return dict(uses.most_common())


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
