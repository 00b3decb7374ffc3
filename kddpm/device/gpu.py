"""Which operators LiteRT's GPU delegate takes, and in which form, so that a file is checked without a GPU.

Found by trial with the WebGPU accelerators of LiteRT and LiteRT.js (versions: docs/devices.md). Some operators that the
delegate takes give wrong values there and are refused here: SPLIT and UNPACK, whose outputs it fuses with what follows,
convolutions in groups, and concatenations of a tensor with itself. Others that read one tensor twice it leaves to the
CPU, or crashes on.
"""

import numpy as np

from kddpm.base.errors import InputError
from kddpm.device.litert import operator_names

ON_CPU = ("start", "noise")  # the signatures whose integers no GPU takes

TAKEN = frozenset(
    "ABS ADD ARG_MAX AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION CONV_2D COS DEPTHWISE_CONV_2D DEPTH_TO_SPACE "
    "DEQUANTIZE DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GELU GREATER HARD_SWISH LEAKY_RELU "
    "LESS LOG LOGICAL_AND LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG PAD POW REDUCE_MAX REDUCE_MIN "
    "REDUCE_PROD RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SELECT SELECT_V2 "
    "SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE "
    "TOPK_V2 TRANSPOSE TRANSPOSE_CONV".split()
)

_MOST_DIMENSIONS = 4
_NOT_TWICE = ("BATCH_MATMUL", "CONCATENATION", "EQUAL")  # the operators that may not read one tensor twice


def check(content: bytes) -> None:
    """Check that a GPU takes every operator of a `.tflite` but those of `ON_CPU`.

    Raises:
        InputError: it does not; the message names the operators.
    """
    if found := refused(content):
        raise InputError(
            "target", "gpu needs a network of operators that GPUs take, see docs/devices.md", "; ".join(found)
        )


def refused(content: bytes) -> list[str]:
    """Return the operators that no GPU takes, sorted, such as "GATHER of 2-dimensional indices"; none = all run there.

    Args:
        content: a `.tflite`; the signatures of `ON_CPU` are left out.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    names = operator_names(model)
    on_cpu = {s.subgraphIndex for s in model.signatureDefs or () if s.signatureKey.decode() in ON_CPU}
    found = set()
    for graph in (graph for index, graph in enumerate(model.subgraphs) if index not in on_cpu):
        for operator in graph.operators:
            name = names[operator.opcodeIndex]
            fault = _fault(name, operator, graph, lambda tensor: model.buffers[tensor.buffer].data is not None)
            if fault is not None:
                found.add(f"{name} {fault}".strip())
    return sorted(found)


def _fault(name, operator, graph, is_constant) -> str | None:
    """Return what is wrong with an operator, "" = all of it; None = a GPU takes it."""
    if name not in TAKEN:
        return ""
    inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
    outputs = [graph.tensors[index] for index in operator.outputs]
    options = operator.builtinOptions
    for tensor in outputs + [tensor for tensor in inputs if not is_constant(tensor)]:
        dimensions = _dimensions(tensor)
        if not dimensions:
            return "of a scalar"
        if dimensions > _MOST_DIMENSIONS:
            return f"of {dimensions} dimensions"
        if tensor.shapeSignature is not None and np.any(np.asarray(tensor.shapeSignature) < 0):
            return "of a dynamic shape"
    if name == "GATHER" and _dimensions(inputs[1]) != 1:
        return f"of {_dimensions(inputs[1])}-dimensional indices"
    if name == "STRIDED_SLICE" and (options.shrinkAxisMask or options.newAxisMask):
        return "that changes the number of dimensions"
    if name == "CONV_2D" and inputs[1].shape[3] != inputs[0].shape[3]:
        return "in groups"
    if name in _NOT_TWICE and len(set(operator.inputs)) < len(operator.inputs):
        return "of a tensor and itself"
    return None


def _dimensions(tensor) -> int:
    return 0 if tensor.shape is None else len(tensor.shape)
