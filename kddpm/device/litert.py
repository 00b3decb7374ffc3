"""`.tflite` files: made from a SavedModel, with smaller weights, packed without repetition, looked into and run.

LiteRT's XNNPACK delegate packs a copy of a kernel for itself, so what the file says twice costs memory on the device
as well as on the disk. `pack` says everything once: the three signatures that call the network share its weights, its
tensors' descriptions and the options of its operators. LiteRT is imported where it is used: a plain install has none.
"""

import collections
import contextlib
import io
import logging
import os
import re

import tensorflow as tf

from kddpm.base.errors import InputError

PRECISIONS = ("float32", "float16", "int8")
# Not to be quantised: the means and variances of `GroupNormalization`, and the first and last convolution, which are
# small and see the picture itself (measured: benchmarks/README.md). An operator is known by the name of what it gives;
# that of the last convolution, where it gives the output of a signature, is StatefulPartitionedCall.
_QUANTIZED = r"^(?!.*(/einsum|/conv_in|/conv_out|StatefulPartitionedCall)).*$"


def convert(saved_model: str | os.PathLike, signature_keys: list[str]) -> bytes:
    """A float32 `.tflite` with the signatures of a SavedModel, of builtin operators alone.

    Raises:
        InputError: an operator that TFLite does not have, by name.
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
    """The same graph with smaller weights.

    Args:
        content: a float32 `.tflite`.
        precision: "float32" = as it is; "float16" = weights of 16 bits, computed with in float32; "int8" = weights of
            8 bits, a scale for each output channel, multiplied with activations that are quantised as they come
            (dynamic range). Normalisation, the first and the last convolution, noise and schedule stay as they are.
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
    """Without the converters' remarks, such as that gradients are not exported, and their progress bars."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def operators(content: bytes) -> dict[str, int]:
    """How often each builtin operator occurs in a `.tflite`, most frequent first.

    Raises:
        InputError: operators that are not builtin, by name.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    foreign = sorted({code.customCode.decode() for code in model.operatorCodes if code.customCode})
    if foreign:
        raise InputError(f"A .tflite must consist of builtin operators. Received: {', '.join(foreign)}")
    # Codes beyond 127 stand in a second field.
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    uses = collections.Counter(names[codes[o.opcodeIndex]] for graph in model.subgraphs for o in graph.operators)
    return dict(uses.most_common())


def delegation(content: bytes) -> tuple[float, dict[str, int]]:
    """Share of the first graph's operators that run inside XNNPACK, and how many of which run outside."""
    from ai_edge_litert import interpreter

    runtime = interpreter.Interpreter(model_content=content)
    runtime.allocate_tensors()
    details = runtime._get_ops_details()
    delegates = [op for op in details if op["op_name"] == "DELEGATE"]
    outside = {op["index"]: op["op_name"] for op in details if op["op_name"] != "DELEGATE"}
    count = len(outside)
    producers = {output: op for op in details if op["op_name"] != "DELEGATE" for output in op["outputs"]}
    for delegate in delegates:  # what lies between its inputs and its outputs
        waiting = list(delegate["outputs"])
        while waiting:
            op = producers.get(waiting.pop())
            if op is not None and outside.pop(op["index"], None):
                waiting += set(op["inputs"]) - set(delegate["inputs"])
    return 1 - len(outside) / count, dict(collections.Counter(outside.values()).most_common())


def load(content: bytes, threads: int = 2, xnnpack: bool = True) -> dict:
    """The signatures of a `.tflite`: name -> function of arrays by name, giving arrays by name.

    Args:
        content: a `.tflite`.
        threads: of the runtime.
        xnnpack: whether XNNPACK may take operators.
    """
    from ai_edge_litert import interpreter

    resolver = interpreter.OpResolverType
    runtime = interpreter.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=resolver.AUTO if xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    return {name: runtime.get_signature_runner(name) for name in runtime.get_signature_list()}
