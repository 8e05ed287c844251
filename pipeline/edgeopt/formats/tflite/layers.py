"""The operators of a TFLite file as a runtime meets them: version, types, and the memory that one takes."""

from math import prod
from typing import NamedTuple

from edgeopt.formats.tflite.files.model_file import TfliteFile, data_of, kind_of
from edgeopt.formats.tflite.files.schema import OPERATORS
from edgeopt.formats.tflite.reading import DTYPES
from edgeopt.formats.wire.flatbuffer import Table

IN_PLACE = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
"""Operators whose output may lie where their input does."""
BETWEEN_TYPES = ("QUANTIZE", "DEQUANTIZE")
BITS = {
    "float32": 32, "float16": 16, "int32": 32, "uint8": 8, "int64": 64, "bool": 8, "int16": 16,
    "complex64": 64, "int8": 8, "float64": 64, "complex128": 128, "uint64": 64, "uint32": 32, "uint16": 16,
    "int4": 4, "bfloat16": 16, "int2": 2,
}  # fmt: skip


class Layer(NamedTuple):
    """One operator. Types and bytes are those of its tensors that are there; weights are constant inputs."""

    kind: str
    name: str
    version: int
    custom: bool
    inputs: tuple[str, ...]
    constant: tuple[bool, ...]
    outputs: tuple[str, ...]
    working: int
    shapes: tuple[tuple[int, ...], ...]

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}".strip()

    @property
    def activation(self) -> str:
        """The type in which it computes: that of its first input that is no constant, else of its output."""
        if self.kind in BETWEEN_TYPES:
            return self.inputs[0] if self.inputs else ""
        moving = [kind for kind, fixed in zip(self.inputs, self.constant, strict=True) if not fixed]
        return next(iter([*moving, *self.outputs]), "")

    @property
    def weight(self) -> str:
        """The type of its second input, where that is constant."""
        return self.inputs[1] if len(self.inputs) > 1 and self.constant[1] else ""


def layers_of(file: TfliteFile) -> list[Layer]:
    """The operators of all graphs, in the order of the file."""
    codes = file.model.tables("operator_codes")
    buffers = file.model.tables("buffers")
    layers = []
    for graph in file.model.tables("subgraphs"):
        tensors = graph.tables("tensors")

        def constant(index: int, tensors: tuple[Table, ...] = tensors) -> bool:
            return bool(data_of(buffers[tensors[index].integer("buffer")]))

        for operator in graph.tables("operators"):
            code = codes[operator.integer("opcode_index")]
            inputs = [index for index in operator.numbers("inputs") if index >= 0]
            outputs = [index for index in operator.numbers("outputs") if index >= 0]
            kind = kind_of(code)
            read = {index: _bytes(tensors[index]) for index in inputs if not constant(index)}
            written = {index: _bytes(tensors[index]) for index in outputs}
            both = sum(read.values()), sum(written.values())
            layers.append(
                Layer(
                    kind,
                    tensors[outputs[0]].text("name") if outputs else "",
                    code.integer("version", 1),
                    kind not in OPERATORS,
                    tuple(_dtype(tensors[index]) for index in inputs),
                    tuple(constant(index) for index in inputs),
                    tuple(_dtype(tensors[index]) for index in outputs),
                    max(both) if kind in IN_PLACE else sum(both),
                    tuple(tuple(tensors[index].numbers("shape_signature")) for index in outputs),
                )
            )
    return layers


def _dtype(tensor: Table) -> str:
    return DTYPES.get(tensor.integer("type"), "unknown")


def _bytes(tensor: Table) -> int:
    """Bytes of a tensor at batch 1; free dimensions count as 1."""
    count = prod(max(1, size) for size in tensor.numbers("shape"))
    return (count * BITS.get(_dtype(tensor), 0) + 7) // 8
