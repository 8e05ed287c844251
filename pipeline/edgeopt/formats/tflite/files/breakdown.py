"""Size breakdown of a TFLite file, exact to the byte, and the MACs of its layers."""

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.config import absent
from edgeopt.errors import install
from edgeopt.formats.arithmetic import product, sparsity, total_macs
from edgeopt.formats.tflite.files.graphs import Operation, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile, load
from edgeopt.formats.tflite.files.weight_coding import DECODE, decoded
from edgeopt.formats.wire.flatbuffer import Extent
from edgeopt.plugin.contents import LayerSize, SizeBreakdown

PARTS = (
    "weights", "biases", "constants", "quantization parameters", "min/max statistics", "names", "signatures",
    "metadata", "graph structure", "duplicates", "unused buffers", "padding", "appended files",
)  # fmt: skip

_LSTM = ((*range(1, 12), 16), (12, 13, 14, 15, 17))
WEIGHTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "CONV_2D": ((1,), (2,)),
    "DEPTHWISE_CONV_2D": ((1,), (2,)),
    "FULLY_CONNECTED": ((1,), (2,)),
    "TRANSPOSE_CONV": ((1,), (3,)),
    "CONV_3D": ((1,), (2,)),
    "CONV_3D_TRANSPOSE": ((1,), (3,)),
    "BATCH_MATMUL": ((0, 1), ()),
    "EMBEDDING_LOOKUP": ((1,), ()),
    "GATHER": ((0,), ()),
    "PRELU": ((1,), ()),
    "SVDF": ((1, 2), (3,)),
    "RNN": ((1, 2), (3,)),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), (3,)),
    "LSTM": _LSTM,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
}
"""Indices of the inputs of an operator that are weights, and of those that are biases, if constant."""

_BITS = {"float32": "uint32", "float16": "uint16", "int8": "uint8", "uint8": "uint8"}


class Weights(NamedTuple):
    """A constant: its bytes, and the type of its values."""

    data: bytes
    dtype: str


UNPACKING = ("DEQUANTIZE", "DENSIFY")

_OWNERS = {
    "QuantizationParameters.min": "min/max statistics",
    "QuantizationParameters.max": "min/max statistics",
    "Tensor.name": "names",
    "SubGraph.name": "names",
    "Model.description": "metadata",
}
_TABLES = {
    "QuantizationParameters": "quantization parameters",
    "CustomQuantization": "quantization parameters",
    "BlockwiseQuantization": "quantization parameters",
    "MultiAxisQuantization": "quantization parameters",
    "SignatureDef": "signatures",
    "TensorMap": "signatures",
    "Metadata": "metadata",
}
_ROLES = ("unused buffers", "metadata", "constants", "biases", "weights")
"""Roles of a buffer in ascending priority: a shared buffer gets the last one that applies."""


class _Tensor(NamedTuple):
    """A tensor as a layer reads it. ``data`` is empty unless it is a constant."""

    number: int
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    buffer: int
    data: bytes


def read(path: Path) -> SizeBreakdown:
    """Break a TFLite file down by purpose.

    Raises:
        StageError: as `model_file.load`.
    """
    return size_breakdown(load(path))


def size_breakdown(file: TfliteFile) -> SizeBreakdown:
    """The breakdown of a file that is already loaded."""
    roles, layers, parameters, weights = _graphs(file)
    notes = []
    if any(layer.macs is None for layer in layers):
        notes.append("the MACs of layers with a free dimension are unknown")
    if not absent.installed():
        notes.append(f"the sparsity of the weights is unknown without NumPy: {install('numerics')}")
    return SizeBreakdown(
        file=file.name,
        format="tflite",
        size_bytes=len(file.content),
        parts=_parts(file, roles),
        layers=layers,
        parameters=parameters,
        macs=total_macs(layers),
        sparsity=sparsity(_bit_patterns(weights)) if absent.installed() else None,
        notes=tuple(notes),
    )


def _bit_patterns(weights: Iterable[Weights]) -> Iterator[NDArray[np.generic]]:
    """The values of weights as integers, of which equal ones are the same value."""
    return (np.frombuffer(each.data, _BITS[each.dtype]) for each in weights)


def _parts(file: TfliteFile, roles: dict[int, int]) -> dict[str, int]:
    """Bytes per part, each byte counted once, in file order. ``roles`` maps buffers to their role."""
    used: dict[int, int] = {}
    for number, buffer in enumerate(file.model.tables("buffers")):
        vector = buffer.vector("data")
        if vector is not None:
            used[id(vector)] = max(used.get(id(vector), 0), roles.get(number, 0))
    sums = dict.fromkeys(PARTS, 0)
    seen: set[bytes] = set()
    position = 0
    end = len(file.content) - len(file.trailer)
    for extent in file.extents:
        if extent.start > position:
            sums["padding"] += extent.start - position
            position = extent.start
        size = extent.end - position
        # Extents may overlap, for example vtables: only the bytes after the previous extents count.
        if size <= 0:
            continue
        position = extent.end
        part = _part(extent, used)
        if extent.vector is not None or extent.owner == "vtable":
            written = file.content[extent.start : extent.end]
            if written in seen and part != "unused buffers":
                part = "duplicates"
            seen.add(written)
        sums[part] += size
    sums["padding"] += end - position
    sums["appended files"] = len(file.trailer)
    return {part: size for part, size in sums.items() if size}


def _part(extent: Extent, used: dict[int, int]) -> str:
    if extent.owner == "Buffer.data":
        return _ROLES[used.get(id(extent.vector), 0)]
    table, dot, _ = extent.owner.partition(".")
    # The table itself contains little but offsets, so only its vectors count as what it describes.
    return _OWNERS.get(extent.owner) or (_TABLES.get(table) if dot else None) or "graph structure"


def _graphs(
    file: TfliteFile,
) -> tuple[dict[int, int], tuple[LayerSize, ...], int, list[Weights]]:
    """Role of each buffer, layers of all graphs, number of parameters, and weights of known types."""
    model = file.model
    weights: dict[int, Weights] = {}
    roles: dict[int, int] = {}
    # By tensor, not by buffer: equal tensors may share bytes in the file, and are still separate parameters.
    counted: dict[tuple[int, int], int] = {}
    layers = []

    def mark(buffer: int, role: str) -> None:
        roles[buffer] = max(roles.get(buffer, 0), _ROLES.index(role))

    for number in (
        *(e.integer("buffer") for e in model.tables("metadata")),
        *model.numbers("metadata_buffer"),
    ):
        mark(number, "metadata")
    for index, graph in enumerate(graphs_of(file)):
        tensors = [_tensor(tensor) for tensor in graph.tensors]
        for tensor in tensors:
            mark(tensor.buffer, "constants")
        for operation in graph.operations:
            kind = operation.kind
            inputs = [None if tensor is None else tensors[tensor.number] for tensor in operation.inputs]
            constants = list(_constants(kind, inputs))
            for constant, role in constants:
                mark(constant.buffer, role)
                if role == "weights" and constant.dtype in _BITS and constant.buffer not in weights:
                    weights[constant.buffer] = Weights(constant.data, constant.dtype)
                counted[index, constant.number] = product(constant.shape) or 0
            if kind == DECODE:
                for buffer in _unpacked(operation, tensors, weights, file.name):
                    mark(buffer, "weights")
            if kind in UNPACKING and operation.outputs and inputs and inputs[0] is not None:
                # Unpacked when the model is loaded, so readers of the result are readers of the constant.
                result = operation.outputs[0].number
                tensors[result] = tensors[result]._replace(
                    buffer=inputs[0].buffer, number=inputs[0].number, data=inputs[0].data
                )
            outputs = [tensors[tensor.number] for tensor in operation.outputs]
            layers.append(
                LayerSize(
                    name=outputs[0].name if outputs else "",
                    kind=kind,
                    types=tuple(tensor.dtype for tensor in (*inputs, *outputs[:1]) if tensor is not None),
                    shape=outputs[0].shape if outputs else (),
                    macs=_macs(kind, inputs, outputs),
                    parameters=sum(product(constant.shape) or 0 for constant, _ in constants),
                    weight_bytes=sum(len(constant.data) for constant, _ in constants),
                )
            )
    return roles, tuple(layers), sum(counted.values()), list(weights.values())


def _unpacked(
    operation: Operation, tensors: list[_Tensor], weights: dict[int, Weights], name: str
) -> Iterator[int]:
    """Give the readers of decoded weights the codes instead; yields the buffers of the tables."""
    values = decoded(operation, name) if absent.installed() else []
    weights |= {
        codes.buffer: Weights(each.tobytes(), "int8")
        for codes, (_, each) in zip(operation.inputs[::2], values, strict=False)
        if codes is not None
    }
    for codes, tables, output in zip(
        operation.inputs[::2], operation.inputs[1::2], operation.outputs, strict=False
    ):
        if codes is not None and tables is not None:
            place = tensors[output.number]
            tensors[output.number] = place._replace(buffer=codes.buffer, data=codes.data)
            yield tables.buffer


def _constants(kind: str, inputs: list[_Tensor | None]) -> Iterator[tuple[_Tensor, str]]:
    """The constant weights and biases of an operator."""
    weights, biases = WEIGHTS.get(kind, ((), ()))
    for index, tensor in enumerate(inputs):
        if tensor is not None and tensor.data and index in weights + biases:
            yield tensor, "weights" if index in weights else "biases"


def _tensor(tensor: Tensor) -> _Tensor:
    # A free batch dimension counts as its stored size, 1; other free dimensions make the size unknown.
    free = [index for index, size in enumerate(tensor.signature) if size < 0 and index]
    return _Tensor(
        tensor.number,
        tensor.name or f"tensor {tensor.number}",
        tensor.dtype if tensor.dtype != "unknown" else f"type {tensor.table.integer('type')}",
        tuple(None if index in free else size for index, size in enumerate(tensor.shape)),
        tensor.buffer if tensor.is_constant else 0,
        tensor.data,
    )


def _macs(kind: str, inputs: list[_Tensor | None], outputs: list[_Tensor]) -> int | None:
    """MACs of a layer with weights; 0 for other operators, None with a free dimension."""
    if kind not in WEIGHTS or kind in ("GATHER", "EMBEDDING_LOOKUP", "PRELU"):
        return 0
    if len(inputs) < 2 or not outputs:
        return None
    first, weight = inputs[0], inputs[1]
    if first is None or weight is None:
        # An LSTM without an input gate (CIFG); the weights of the forget gate are mandatory.
        weight = inputs[2] if len(inputs) > 2 else None
        if first is None or weight is None:
            return None
    out, kernel = product(outputs[0].shape), product(weight.shape)
    if out is None or kernel is None or not weight.shape:
        return None
    if kind in ("CONV_2D", "FULLY_CONNECTED"):
        return out * (kernel // (weight.shape[0] or 1))
    if kind == "DEPTHWISE_CONV_2D":
        return out * prod(size or 1 for size in weight.shape[1:-1])
    if kind == "CONV_3D":
        return out * (kernel // (weight.shape[-1] or 1))
    if kind == "BATCH_MATMUL":
        return None if first.shape[-1:] == (None,) or not first.shape else out * int(first.shape[-1] or 0)
    if kind == "TRANSPOSE_CONV":
        # The kernel is applied once per input position, not per output position.
        source = product(inputs[2].shape) if len(inputs) > 2 and inputs[2] else None
        return None if source is None else source * (kernel // (weight.shape[-1] or 1))
    if kind in ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "SVDF"):
        return _recurrent(kind, inputs, first)
    return None


def _recurrent(kind: str, inputs: list[_Tensor | None], first: _Tensor) -> int | None:
    """MACs of a recurrent layer: every matrix is applied once per sample and time step."""
    steps = product(first.shape[:-1])
    matrices = [inputs[index] for index in WEIGHTS[kind][0] if index < len(inputs)]
    sizes = [product(tensor.shape) for tensor in matrices if tensor is not None]
    if steps is None or None in sizes:
        return None
    return steps * sum(size for size in sizes if size is not None)
