"""`.tflite` files: made from a SavedModel, with smaller weights, packed without repetition, looked into and run.

LiteRT's XNNPACK delegate packs a copy of a kernel for itself, so what the file says twice costs memory on the device
as well as on the disk. `pack` says everything once: the three signatures that call the network share its weights, its
tensors' descriptions and the options of its operators.
"""

import collections
import contextlib
import io
import itertools
import logging
import pathlib
import re

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter
from ai_edge_litert import schema_py_generated as schema

from kddpm.errors import InputError

PRECISIONS = ("float32", "float16", "int8")

_ALIGNMENT = 16  # of weights, in bytes, as the schema demands
_FAMILY = 64  # tensors, to be worth the gaps that their common numbers may leave
_FILE_IDENTIFIER = b"TFL3"
# Not to be quantised: the means and variances of `GroupNormalization`, and the first and last convolution, which are
# small and see the picture itself (measured: benchmarks/README.md). An operator is known by the name of what it gives;
# that of the last convolution, where it gives the output of a signature, is StatefulPartitionedCall.
_QUANTIZED = r"^(?!.*(/einsum|/conv_in|/conv_out|StatefulPartitionedCall)).*$"


def convert(saved_model: pathlib.Path, signature_keys: list[str]) -> bytes:
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


def pack(content: bytes, first: str) -> bytes:
    """The same model in fewer bytes: nothing is said twice, and inner tensors lose their names.

    Args:
        content: a `.tflite`.
        first: the signature whose graph comes first, where tools that know no signatures look.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    _reorder(model, {s.signatureKey.decode(): s.subgraphIndex for s in model.signatureDefs}[first])
    model.metadata = None  # versions of the converter
    _share_buffers(model, content)
    packed = {}
    for graph in model.subgraphs:
        named = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            tensor.name = tensor.name if index in named else ""
            has_scale = tensor.quantization is not None and tensor.quantization.scale is not None
            tensor.quantization = _Once(tensor.quantization, packed) if has_scale else None
            graph.tensors[index] = _Once(tensor, packed)
        for operator in graph.operators:
            operator.builtinOptions = operator.builtinOptions and _Once(operator.builtinOptions, packed)
    _align_tensors(model, packed)
    for graph in model.subgraphs:
        graph.operators = [_Once(operator, packed) for operator in graph.operators]
    builder = _Builder(len(content) + 2**16)
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Writes a vector once, and points to it whenever it comes again."""

    def __init__(self, size: int):
        super().__init__(size)
        self._vectors = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Offset of the vector."""
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


class _Once:
    """A flatbuffer table that is written the first time it is packed and pointed to whenever its content comes again.

    Args:
        table: the table, in the schema's object form.
        packed: offsets by content, shared by all tables of a file.
    """

    def __init__(self, table, packed: dict):
        self.table = table
        self.key = (type(table).__name__, *((name, _hashable(value)) for name, value in sorted(vars(table).items())))
        self._packed = packed

    def Pack(self, builder) -> int:
        """Offset of the table in the file."""
        if self.key not in self._packed:
            self._packed[self.key] = self.table.Pack(builder)
        return self._packed[self.key]


class _Buffer:
    """Weights, aligned: the schema's own `BufferT` forgets to."""

    def __init__(self, data: bytes):
        self.data = data

    def Pack(self, builder) -> int:
        """Offset of the buffer in the file."""
        vector = None
        if self.data:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


@contextlib.contextmanager
def _quiet():
    """Without the converters' remarks, such as that gradients are not exported, and their progress bars."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _hashable(value):
    if isinstance(value, _Once):
        return value.key
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return (
        tuple((name, _hashable(v)) for name, v in sorted(vars(value).items())) if hasattr(value, "__dict__") else value
    )


def _reorder(model, first: int) -> None:
    """Put one subgraph first, and follow it wherever subgraphs are called by number."""
    order = [first, *(index for index in range(len(model.subgraphs)) if index != first)]
    moved = {old: new for new, old in enumerate(order)}
    for graph in model.subgraphs:
        for operator in graph.operators:
            options = operator.builtinOptions
            for name in vars(options) if options else ():
                if name.endswith("SubgraphIndex"):
                    setattr(options, name, moved[getattr(options, name)])
    for signature in model.signatureDefs:
        signature.subgraphIndex = moved[signature.subgraphIndex]
    model.subgraphs = [model.subgraphs[index] for index in order]


def _share_buffers(model, content: bytes) -> None:
    """One buffer for each content; number 0, the empty one, for all that has none."""
    numbers = {b"": 0}

    def renumbered(index):
        buffer = model.buffers[index]
        if buffer.size:  # kept behind the flatbuffer, as files beyond 2 GB must
            data = bytes(content[buffer.offset : buffer.offset + buffer.size])
        else:
            data = b"" if buffer.data is None else buffer.data.tobytes()
        return numbers.setdefault(data, len(numbers))

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = renumbered(tensor.buffer)
    model.buffers = [_Buffer(data) for data in numbers]


def _align_tensors(model, packed: dict) -> None:
    """Number the tensors of all graphs alike, so that an operator which stands in several is the same table in each.

    A tensor is known by what makes it: the operator, its options, its constants. Large families that occur in the same
    graphs, the noise and the network, get the same numbers in each of these graphs; where that leaves a gap, the other
    tensors fill it, and then tensors that nothing uses.
    """
    identities = [_identities(graph) for graph in model.subgraphs]
    homes = collections.defaultdict(tuple)
    for number, known in enumerate(identities):
        for identity in known:
            homes[identity] += (number,)
    sizes = collections.Counter(homes.values())
    families = collections.defaultdict(list)
    for identity, home in homes.items():
        for key in [home] if sizes[home] >= _FAMILY else [(number,) for number in home]:
            families[key].append(identity)
    places, ends = [{} for _ in identities], [0] * len(identities)
    for home in sorted(families, key=lambda home: (-len(home), -len(families[home]))):
        first = max(ends[number] for number in home)
        for number in home:
            taken = set(places[number].values())
            free = itertools.count(first) if len(home) > 1 else (n for n in itertools.count() if n not in taken)
            places[number].update(zip(families[home], free, strict=False))
            ends[number] = max(places[number].values()) + 1
    unused = _Once(schema.TensorT(), packed)
    moved = []
    for graph, known, place, end in zip(model.subgraphs, identities, places, ends, strict=True):
        to = np.array([*(place[identity] for identity in known), -1], np.int32)  # -1: an optional input, not there
        moved.append(to)
        tensors = dict(zip(to.tolist(), graph.tensors, strict=False))
        graph.tensors = [tensors.get(number, unused) for number in range(end)]
        for holder in (graph, *graph.operators):
            holder.inputs, holder.outputs = to[holder.inputs], to[holder.outputs]
    for signature in model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = int(moved[signature.subgraphIndex][entry.tensorIndex])


def _identities(graph) -> list[tuple]:
    """What each tensor of a graph is known by, the same in every graph where it is computed alike."""
    known = [("given", tensor.key) for tensor in graph.tensors]
    for operator in graph.operators:
        operands = [graph.tensors[index].key for index in operator.inputs if index >= 0]
        for slot, output in enumerate(operator.outputs):
            options = operator.builtinOptions and operator.builtinOptions.key
            known[output] = (operator.opcodeIndex, options, *operands, slot, graph.tensors[output].key)
    seen = collections.Counter()
    for index, identity in enumerate(known):
        seen[identity] += 1
        known[index] = (identity, seen[identity])
    return known


def operators(content: bytes) -> dict[str, int]:
    """How often each builtin operator occurs in a `.tflite`, most frequent first.

    Raises:
        InputError: operators that are not builtin, by name.
    """
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
    resolver = interpreter.OpResolverType
    runtime = interpreter.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=resolver.AUTO if xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    return {name: runtime.get_signature_runner(name) for name in runtime.get_signature_list()}
