"""Makes `.tflite` files smaller by writing equal content once.

LiteRT's XNNPACK delegate packs its own copy of each kernel, so a duplicate in the file costs memory on the device as
well as on the disk. After `pack`, the three signatures that call the network share its weights, the flatbuffer tables
of its tensors and the options of its operators.
"""

import collections
import itertools

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kddpm.device import litert

_ALIGNMENT = 16  # of weights, in bytes, as the schema requires
_FAMILY = 64  # fewer tensors are not worth the gaps that common numbers may leave
_FILE_IDENTIFIER = b"TFL3"


def pack(content: bytes, first: str) -> bytes:
    """Return the same model in fewer bytes: equal tables are written once, and inner tensors lose their names.

    Of the metadata, `min_runtime_version` stays, see `litert.min_runtime_version`.

    Args:
        content: a `.tflite`.
        first: the signature whose graph comes first, which tools without signatures use.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    _reorder(model, {s.signatureKey.decode(): s.subgraphIndex for s in model.signatureDefs}[first])
    _share_buffers(model, content)
    version = litert.min_runtime_version(content).encode()
    model.metadata = [schema.MetadataT(litert.MIN_RUNTIME_VERSION, len(model.buffers))]
    model.buffers.append(_Buffer(version.ljust(_ALIGNMENT, b"\0")))
    packed: dict[tuple, int] = {}
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
    """A flatbuffer builder that writes equal vectors once and points to the first."""

    def __init__(self, size: int):
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Write the vector, unless an equal one is written, and return its offset."""
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


class _Once:
    """A flatbuffer table that is written once; equal tables point to the first.

    Args:
        table: the table, in the schema's object form.
        packed: offsets of written tables by content, shared by all tables of a file.
    """

    def __init__(self, table, packed: dict[tuple, int]):
        self.table = table
        self.key = (type(table).__name__, *((name, _hashable(value)) for name, value in sorted(vars(table).items())))
        self._packed = packed

    def Pack(self, builder) -> int:
        """Write the table, unless an equal one is written, and return its offset."""
        if self.key not in self._packed:
            self._packed[self.key] = self.table.Pack(builder)
        return self._packed[self.key]


class _Buffer:
    """Weights that are aligned, which the schema's own `BufferT` omits."""

    def __init__(self, data: bytes):
        self.data = data

    def Pack(self, builder) -> int:
        """Write the buffer and return its offset."""
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


def _hashable(value):
    """Return a hashable key of a table, vector or number, equal for equal content."""
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
    """Put one subgraph first, and update all references to subgraphs by number."""
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
    """Merge buffers with equal content; buffer 0 is the empty one."""
    numbers = {b"": 0}

    def renumbered(index):
        buffer = model.buffers[index]
        if buffer.size:  # stored after the flatbuffer, as in files beyond 2 GB
            data = bytes(content[buffer.offset : buffer.offset + buffer.size])
        else:
            data = b"" if buffer.data is None else buffer.data.tobytes()
        return numbers.setdefault(data, len(numbers))

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = renumbered(tensor.buffer)
    model.buffers = [_Buffer(data) for data in numbers]


def _align_tensors(model, packed: dict) -> None:
    """Give a tensor the same number in all graphs, so that an operator in several graphs is the same table in each.

    The operator that computes a tensor, its options and its constants identify it. Large families of tensors that occur
    in the same graphs, such as the noise and the network, get the same numbers in each of these graphs. Gaps that this
    leaves are filled with the other tensors, and then with unused tensors.
    """
    identities = [_identities(graph) for graph in model.subgraphs]
    homes: dict[tuple, tuple[int, ...]] = collections.defaultdict(tuple)
    for number, known in enumerate(identities):
        for identity in known:
            homes[identity] += (number,)
    sizes = collections.Counter(homes.values())
    families = collections.defaultdict(list)
    for identity, home in homes.items():
        for key in [home] if sizes[home] >= _FAMILY else [(number,) for number in home]:
            families[key].append(identity)
    places: list[dict[tuple, int]] = [{} for _ in identities]
    ends = [0] * len(identities)
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
        to = np.array([*(place[identity] for identity in known), -1], np.int32)  # -1 = an optional input that is absent
        moved.append(to)
        tensors = dict(zip(to.tolist(), graph.tensors, strict=False))
        graph.tensors = [tensors.get(number, unused) for number in range(end)]
        for holder in (graph, *graph.operators):
            holder.inputs, holder.outputs = to[holder.inputs], to[holder.outputs]
    for signature in model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = int(moved[signature.subgraphIndex][entry.tensorIndex])


def _identities(graph) -> list[tuple]:
    """Return a key for each tensor of a graph, equal in all graphs that compute the tensor in the same way."""
    known: list[tuple] = [("given", tensor.key) for tensor in graph.tensors]
    for operator in graph.operators:
        operands = [graph.tensors[index].key for index in operator.inputs if index >= 0]
        for slot, output in enumerate(operator.outputs):
            options = operator.builtinOptions and operator.builtinOptions.key
            known[output] = (operator.opcodeIndex, options, *operands, slot, graph.tensors[output].key)
    seen: collections.Counter[tuple] = collections.Counter()
    for index, identity in enumerate(known):
        seen[identity] += 1
        known[index] = (identity, seen[identity])
    return known
