"""The graphs of a TFLite file: tensors and operators in file order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from edgeopt.formats.tflite.files.model_file import TfliteFile, data_of, kind_of, load
from edgeopt.formats.tflite.files.schema import OPERATORS
from edgeopt.formats.wire.flatbuffer import Table
from edgeopt.model import Layout, TensorSpec

DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool", 7: "int16",
    8: "complex64", 9: "int8", 10: "float64", 11: "complex128", 12: "uint64", 15: "uint32", 16: "uint16",
    17: "int4", 18: "bfloat16", 19: "int2",
}  # fmt: skip
BITS = {
    "float32": 32, "float16": 16, "int32": 32, "uint8": 8, "int64": 64, "bool": 8, "int16": 16,
    "complex64": 64, "int8": 8, "float64": 64, "complex128": 128, "uint64": 64, "uint32": 32, "uint16": 16,
    "int4": 4, "bfloat16": 16, "int2": 2,
}  # fmt: skip

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"})
"""Operators with nearly all weights and MACs of a network."""
BETWEEN_TYPES = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a graph; ``data`` is empty unless it is a constant."""

    number: int
    table: Table
    data: bytes

    @cached_property
    def name(self) -> str:
        """The name; empty for most tensors of a slimmed file."""
        return self.table.text("name")

    @cached_property
    def dtype(self) -> str:
        return DTYPES.get(self.table.integer("type"), "unknown")

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The stored shape, in which free dimensions are 1."""
        return tuple(self.table.numbers("shape"))

    @cached_property
    def signature(self) -> tuple[int, ...]:
        """The shape with -1 for free dimensions; empty if none is free."""
        return tuple(self.table.numbers("shape_signature"))

    @property
    def buffer(self) -> int:
        return self.table.integer("buffer")

    @property
    def is_constant(self) -> bool:
        return bool(self.data)

    @property
    def memory(self) -> int:
        """Size in bytes at batch 1; free dimensions count as 1."""
        return (prod(max(1, size) for size in self.shape) * BITS.get(self.dtype, 0) + 7) // 8

    @cached_property
    def scale(self) -> float | None:
        """The scale of a per-tensor quantized tensor, otherwise None."""
        quantization = self.table.table("quantization")
        scale = quantization.vector("scale") if quantization is not None else None
        values = scale.numbers() if scale is not None else ()
        return float(values[0]) if len(values) == 1 else None

    @cached_property
    def zero_point(self) -> int | None:
        """The zero point of a per-tensor quantized tensor; None if it is not stored."""
        quantization = self.table.table("quantization")
        values = quantization.numbers("zero_point") if quantization is not None else []
        return values[0] if self.scale is not None and values else None

    def spec(self, name: str | None, layout: Layout | None) -> TensorSpec:
        """The spec of this tensor as an input or output of the model; ``layout`` applies to rank 4."""
        sizes = tuple(None if size < 0 else size for size in self.signature) or self.shape
        return TensorSpec(
            name=name or self.name,
            shape=sizes,
            dtype=self.dtype,
            layout=layout if len(sizes) == 4 else None,
            scale=self.scale,
            zero_point=self.zero_point,
        )


@dataclass(frozen=True, eq=False)
class Operation:
    """One operator. Omitted optional inputs are None; omitted outputs are not listed."""

    kind: str
    version: int
    table: Table
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """The name of the first output; TFLite operators have none of their own."""
        return self.outputs[0].name if self.outputs else ""

    @property
    def is_custom(self) -> bool:
        return self.kind not in OPERATORS

    @property
    def present(self) -> tuple[Tensor, ...]:
        """The inputs without omitted ones."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph; inputs and outputs are in the order of the interpreter."""

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def count(self, kind: str) -> int:
        """The number of operators of a kind, such as ``TRANSPOSE``."""
        return Counter(operation.kind for operation in self.operations)[kind]

    def float_weighted(self) -> list[str]:
        """Names of the convolutions and dense layers with a float input or float weights."""
        return [
            f"{operation.kind} {operation.name}"
            for operation in self.operations
            if operation.kind in WEIGHTED and _has_float(operation.inputs[:2])
        ]

    def float_others(self) -> list[str]:
        """Kinds of the operators without weights that have float tensors."""
        return sorted(
            {
                operation.kind
                for operation in self.operations
                if operation.kind not in WEIGHTED and operation.kind not in BETWEEN_TYPES
                if _has_float((*operation.inputs, *operation.outputs))
            }
        )


@dataclass(frozen=True, eq=False)
class Signature:
    """The main graph of a file, with inputs and outputs named by the first signature."""

    graph: Graph
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graphs_of(file: TfliteFile) -> tuple[Graph, ...]:
    """The graphs of a file, the main one first."""
    codes = [(kind_of(code), code.integer("version", 1)) for code in file.model.tables("operator_codes")]
    buffers = [data_of(buffer) for buffer in file.model.tables("buffers")]
    return tuple(_graph(graph, codes, buffers) for graph in file.model.tables("subgraphs"))


def read_signature(path: Path, layout: Layout | None = None) -> Signature:
    """The main graph of the file at ``path``; ``layout`` applies to inputs of rank 4.

    Raises:
        StageError: the file is not a TFLite model, or is damaged.
    """
    file = load(path)
    graph = graphs_of(file)[0]
    ends = zip((graph.inputs, graph.outputs), signature_names(file), (layout, None), strict=True)
    inputs, outputs = (_specs(tensors, names, kind) for tensors, names, kind in ends)
    return Signature(graph, inputs, outputs)


def signature_names(file: TfliteFile) -> tuple[dict[str, int], dict[str, int]]:
    """The tensor numbers of the inputs and of the outputs, by their names in the first signature."""
    signature = next(iter(file.model.tables("signature_defs")), None)
    if signature is None:
        return {}, {}
    ends = (signature.tables("inputs"), signature.tables("outputs"))
    inputs, outputs = ({e.text("name"): e.integer("tensor_index") for e in entries} for entries in ends)
    return inputs, outputs


def _specs(tensors: Sequence[Tensor], names: dict[str, int], layout: Layout | None) -> tuple[TensorSpec, ...]:
    """The specs of inputs or outputs; a tensor that is returned twice has two names, in this order."""
    left: dict[int, list[str]] = {}
    for name, number in names.items():
        left.setdefault(number, []).append(name)
    return tuple(
        tensor.spec(left[tensor.number].pop(0) if left.get(tensor.number) else None, layout)
        for tensor in tensors
    )


def _graph(graph: Table, codes: Sequence[tuple[str, int]], buffers: Sequence[bytes]) -> Graph:
    tensors = tuple(
        Tensor(number, table, buffers[table.integer("buffer")])
        for number, table in enumerate(graph.tables("tensors"))
    )
    operations = tuple(
        Operation(
            *codes[operator.integer("opcode_index")],
            operator,
            tuple(tensors[number] if number >= 0 else None for number in operator.numbers("inputs")),
            tuple(tensors[number] for number in operator.numbers("outputs") if number >= 0),
        )
        for operator in graph.tables("operators")
    )
    ends = (tuple(tensors[number] for number in graph.numbers(end)) for end in ("inputs", "outputs"))
    return Graph(tensors, operations, *ends)


def _has_float(tensors: Sequence[Tensor | None]) -> bool:
    return any(tensor is not None and tensor.dtype.startswith("float") for tensor in tensors)
