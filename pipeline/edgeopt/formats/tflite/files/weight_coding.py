"""Weights in fewer bits: an operator decodes them before the layer that reads them.

TensorFlow Lite Micro decodes a tensor from its codes and a second tensor: a header that names the coding, and
tables. The decoded weights are in the arena while their layer runs. No other runtime has this operator.

Source: tflite-micro, ``compression/{decode,lut}.py`` and ``kernels/decode*.cc``, of October 2026.
"""

import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files import huffman, value_tables
from edgeopt.formats.tflite.files.graphs import DTYPES, Graph, Operation, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import CUSTOM, IDENTIFIER, TfliteFile, kind_of
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack

Coding: TypeAlias = Literal["tables", "huffman"]
Weights: TypeAlias = NDArray[np.int8]

DECODE = "TFLM_DECODE"
"""The custom operator."""
DECODING = frozenset({"tflm"})
"""The runtimes that have it."""
DECODED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
"""Operators whose kernels accept weights that another operator has computed."""
HEADER = 16
VERSION = 1
TABLES, HUFFMAN = 0, 1
UINT8 = next(number for number, name in DTYPES.items() if name == "uint8")
LAYER_BYTES = 130
"""About the bytes that the operator of a layer and its tensors add to a slimmed file, without their data."""
CODE_BYTES = 60
"""About the bytes that a second tensor adds that no other layer shares, without its data."""


class Packed(NamedTuple):
    """A tensor as stored: its codes, and the second tensor, which equal codings of several layers share."""

    coding: Coding
    codes: bytes
    header: bytes


class Layer(NamedTuple):
    """A constant int8 weight tensor that only one operator reads."""

    operator: int
    """Its position in the main graph."""
    tensor: Tensor
    values: Weights
    axis: int | None
    """The axis with a scale for each position; None if the tensor has one scale."""


def is_coded(file: TfliteFile) -> bool:
    """Whether an operator of the file decodes weights."""
    return any(kind_of(code) == DECODE for code in file.model.tables("operator_codes"))


def layers_of(graph: Graph) -> list[Layer]:
    """The layers of a graph whose weights can be stored in fewer bits, in execution order."""
    readers = Counter(tensor.number for operation in graph.operations for tensor in operation.present)
    readers.update(tensor.number for tensor in graph.outputs)
    found = []
    for number, operation in enumerate(graph.operations):
        if operation.kind not in DECODED or len(operation.present) < 2:
            continue
        data, weights = operation.inputs[0], operation.inputs[1]
        if data is None or weights is None or not weights.is_constant or readers[weights.number] > 1:
            continue
        if data.dtype == weights.dtype == "int8":
            values = np.frombuffer(weights.data, np.int8).reshape(weights.shape)
            found.append(Layer(number, weights, values, _axis(weights)))
    return found


def _axis(tensor: Tensor) -> int | None:
    quantization = tensor.table.table("quantization")
    scale = quantization.vector("scale") if quantization is not None else None
    if quantization is None or scale is None or len(scale.numbers()) < 2:
        return None
    return quantization.integer("quantized_dimension")


def packed(layers: Sequence[Layer], codings: Collection[Coding]) -> list[Packed | None]:
    """The smallest form of each tensor; None if none is smaller than the tensor itself."""
    tables = [_in_tables(layer) if "tables" in codings else None for layer in layers]
    codes = _in_codes(layers) if "huffman" in codings else [None] * len(layers)
    users = Counter(each.header for each in codes if each is not None)
    chosen: list[Packed | None] = []
    for layer, *forms in zip(layers, tables, codes, strict=True):
        sizes = []
        for form in filter(None, forms):
            own = 0 if users[form.header] > 1 else len(form.header) + CODE_BYTES
            sizes.append((len(form.codes) + own, form.coding, form))
        size, _, smallest = min(sizes, default=(layer.values.size, "", None))
        chosen.append(smallest if size + LAYER_BYTES < layer.values.size else None)
    return chosen


def _in_tables(layer: Layer) -> Packed | None:
    """A tensor as indices, with one table for each of its scales.

    The kernels of October 2026 take the number of tables from the scales, not from the header: one table for
    a tensor with several scales is decoded wrongly, without an error.
    """
    if layer.axis not in (None, 0, layer.values.ndim - 1):
        return None
    form = value_tables.coded(layer.values, layer.axis)
    if form is None:
        return None
    header = _header(TABLES, form.axis << 4 | form.bits, form.stride)
    return Packed("tables", form.indices, header + form.tables)


@dataclass(frozen=True, eq=False)
class _Group:
    """Layers with one Huffman code, and the bytes of their codes and its tables."""

    members: tuple[int, ...]
    counts: "Counter[int]"
    size: float

    @classmethod
    def of(cls, members: tuple[int, ...], counts: "Counter[int]") -> "_Group":
        lengths = huffman.lengths_of(counts)
        tables = huffman.code_of(lengths).tables
        bits = sum(counts[value] * length for value, length in lengths.items())
        return cls(members, counts, bits / 8 + HEADER + len(tables.content) + CODE_BYTES)

    def joined(self, other: "_Group") -> "_Group":
        return self.of((*self.members, *other.members), self.counts + other.counts)


def _in_codes(layers: Sequence[Layer]) -> list[Packed | None]:
    """All tensors in Huffman codes; layers share one where another would cost more than it saves."""
    groups = [
        _Group.of((index,), Counter(layer.values.reshape(-1).tolist()))
        for index, layer in enumerate(layers)
        if layer.values.size
    ]
    joined = {pair: pair[0].joined(pair[1]) for pair in combinations(groups, 2)}
    while joined:
        pair = max(joined, key=lambda each: each[0].size + each[1].size - joined[each].size)
        group = joined[pair]
        if group.size >= pair[0].size + pair[1].size:
            break
        groups = [each for each in groups if each not in pair]
        joined = {each: made for each, made in joined.items() if not {*map(id, each)} & {*map(id, pair)}}
        joined |= {(each, group): each.joined(group) for each in groups}
        groups.append(group)
    result: list[Packed | None] = [None] * len(layers)
    for group in groups:
        code = huffman.code_of(huffman.lengths_of(group.counts))
        header = _header(HUFFMAN, (code.tables.first - 1) << 4, 0) + code.tables.content
        for index in group.members:
            result[index] = Packed("huffman", huffman.encoded(layers[index].values, code), header)
    return result


def _header(kind: int, parameter: int, stride: int) -> bytes:
    return struct.pack("<BBxxBBB9x", kind, VERSION, VERSION, parameter, stride)


def with_packed(file: TfliteFile, layers: Mapping[int, Packed]) -> bytes:
    """The content of the file with the weights of some operators of the main graph, by position, packed.

    The tensors of the weights keep their numbers; they are computed by an operator before each layer.
    """
    model = file.model
    graph = model.tables("subgraphs")[0]
    tensors, buffers = list(graph.tables("tensors")), list(model.tables("buffers"))
    codes = (*model.tables("operator_codes"), _operator_code())
    operators: list[Table] = []

    def constant(data: bytes) -> int:
        buffers.append(Table("Buffer", {"data": Vector("u8", data)}))
        shape = Vector("i32", struct.pack("<i", len(data)))
        tensors.append(Table("Tensor", {"shape": shape, "type": UINT8, "buffer": len(buffers) - 1}))
        return len(tensors) - 1

    for number, operator in enumerate(graph.tables("operators")):
        if number in layers:
            weights = operator.numbers("inputs")[1]
            tensors[weights] = tensors[weights].but("buffer")
            inputs = [constant(layers[number].codes), constant(layers[number].header)]
            ends = {"inputs": _indices(inputs), "outputs": _indices([weights])}
            operators.append(Table("Operator", {"opcode_index": len(codes) - 1, **ends}))
        operators.append(operator)
    graph = graph.but(tensors=tuple(tensors), operators=tuple(operators))
    subgraphs = (graph, *model.tables("subgraphs")[1:])
    changed = model.but(operator_codes=codes, subgraphs=subgraphs, buffers=tuple(buffers))
    return pack(without_unused(changed), SCHEMA, IDENTIFIER)


def _operator_code() -> Table:
    name = Vector("str", DECODE.encode())
    return Table(
        "OperatorCode", {"deprecated_builtin_code": CUSTOM, "custom_code": name, "builtin_code": CUSTOM}
    )


def _indices(numbers: Sequence[int]) -> Vector:
    return Vector("i32", struct.pack(f"<{len(numbers)}i", *numbers))


def without_unused(model: Table) -> Table:
    """The model with buffers emptied that nothing refers to; their numbers stay."""
    used = {entry.integer("buffer") for entry in model.tables("metadata")}
    used.update(model.numbers("metadata_buffer"))
    used.update(t.integer("buffer") for graph in model.tables("subgraphs") for t in graph.tables("tensors"))
    buffers = enumerate(model.tables("buffers"))
    return model.but(buffers=tuple(each if at in used else Table("Buffer", {}) for at, each in buffers))


def expanded(file: TfliteFile) -> bytes:
    """The content of the file with all weights as they are decoded, which every runtime executes.

    Raises:
        StageError: packed weights are damaged, or in a coding that this version does not know.
    """
    model = file.model
    buffers = list(model.tables("buffers"))
    subgraphs = []
    for table, graph in zip(model.tables("subgraphs"), graphs_of(file), strict=True):
        tensors, operators = list(table.tables("tensors")), []
        for operator, operation in zip(table.tables("operators"), graph.operations, strict=True):
            if operation.kind != DECODE:
                operators.append(operator)
                continue
            for output, values in decoded(operation, file.name):
                buffers.append(Table("Buffer", {"data": Vector("u8", values.tobytes())}))
                tensors[output.number] = tensors[output.number].but(buffer=len(buffers) - 1)
        subgraphs.append(table.but(tensors=tuple(tensors), operators=tuple(operators)))
    return pack(model.but(subgraphs=tuple(subgraphs), buffers=tuple(buffers)), SCHEMA, IDENTIFIER)


def decoded(operation: Operation, name: str) -> list[tuple[Tensor, Weights]]:
    """The tensors that a decoding operator computes, with their values.

    Raises:
        StageError: as `expanded`; the message begins with ``name``.
    """
    found = []
    pairs = zip(operation.inputs[::2], operation.inputs[1::2], operation.outputs, strict=False)
    for codes, header, output in pairs:
        is_whole = codes is not None and header is not None and len(header.data) >= HEADER
        if not is_whole or output.dtype != "int8" or min(output.shape, default=1) < 0:
            raise StageError(f"{name} is damaged: {DECODE} has no weights", fix="export the file again")
        assert codes is not None and header is not None  # whole
        kind, version, _, _, inner, parameter, stride = header.data[:7]
        tables, shape = header.data[HEADER:], output.shape
        if (version, inner) != (VERSION, VERSION) or kind not in (TABLES, HUFFMAN) or parameter & kind:
            raise StageError(
                f"{name} has weights in a coding that this version of edgeopt does not know: type {kind}, "
                f"version {version}.{inner}",
                fix="update edgeopt",
            )
        if kind == HUFFMAN:
            count = int(np.prod(shape))
            values = huffman.decoded(codes.data, (parameter >> 4) + 1, tables, count, name).reshape(shape)
        else:
            values = value_tables.decoded(
                codes.data, tables, parameter & 7, parameter >> 4, stride, shape, name
            )
        found.append((output, values))
    return found
