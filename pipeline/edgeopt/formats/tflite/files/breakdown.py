"""Where the bytes of a TFLite file go, exact to the byte, and the arithmetic of its layers."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.arithmetic import product, sparsity, total_macs
from edgeopt.formats.tflite.files.graphs import Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile, load
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
"""Which inputs of an operator are weights, and which are biases, where they are constant."""

_BITS = {"float32": np.uint32, "float16": np.uint16, "int8": np.uint8, "uint8": np.uint8}

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
"""What a buffer is for; the last that holds is told."""


class _Tensor(NamedTuple):
    """A tensor as a layer sees it. ``data`` is empty where it is no constant."""

    number: int
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    buffer: int
    data: bytes


def read(path: Path) -> SizeBreakdown:
    """The breakdown of the file at ``path``.

    Raises:
        StageError: as `model_file.load`.
    """
    return size_breakdown(load(path))


def size_breakdown(file: TfliteFile) -> SizeBreakdown:
    """The breakdown of a file that has been read."""
    roles, layers, parameters, weights = _graphs(file)
    free = any(layer.macs is None for layer in layers)
    return SizeBreakdown(
        file=file.name,
        format="tflite",
        size_bytes=len(file.content),
        parts=_parts(file, roles),
        layers=layers,
        parameters=parameters,
        macs=total_macs(layers),
        sparsity=sparsity(weights),
        notes=("MACs are not told for layers with a free dimension",) if free else (),
    )


def _parts(file: TfliteFile, roles: dict[int, int]) -> dict[str, int]:
    """Every byte once, in the order of the file. ``roles`` tells what each buffer is for."""
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
    # A table holds offsets and little else; what it describes lies in its vectors.
    return _OWNERS.get(extent.owner) or (_TABLES.get(table) if dot else None) or "graph structure"


def _graphs(
    file: TfliteFile,
) -> tuple[dict[int, int], tuple[LayerSize, ...], int, list[NDArray[np.generic]]]:
    """The role of each buffer, the layers of all graphs, the number of parameters, and the weights' bits."""
    model = file.model
    weights: dict[int, NDArray[np.generic]] = {}
    roles: dict[int, int] = {}
    # Counted by tensor: that equal ones share their bytes in the file makes no difference to the model.
    counted: dict[tuple[int, int], int] = {}
    layers = []

    def mark(buffer: int, role: str) -> None:
        roles[buffer] = max(roles.get(buffer, 0), _ROLES.index(role))

    for number in (
        *(e.integer("buffer") for e in model.tables("metadata")),
        *model.numbers("metadata_buffer"),
    ):
        mark(number, "metadata")
    for place, graph in enumerate(graphs_of(file)):
        tensors = [_tensor(tensor) for tensor in graph.tensors]
        for tensor in tensors:
            mark(tensor.buffer, "constants")
        for operation in graph.operations:
            kind = operation.kind
            inputs = [None if given is None else tensors[given.number] for given in operation.inputs]
            constants = list(_constants(kind, inputs))
            for constant, role in constants:
                mark(constant.buffer, role)
                if role == "weights" and constant.dtype in _BITS:
                    weights[constant.buffer] = np.frombuffer(constant.data, _BITS[constant.dtype])
                counted[place, constant.number] = product(constant.shape) or 0
            if kind in UNPACKING and operation.outputs and inputs and inputs[0] is not None:
                # Unpacked when the model is loaded: whoever reads the result, reads the constant.
                result = operation.outputs[0].number
                tensors[result] = tensors[result]._replace(
                    buffer=inputs[0].buffer, number=inputs[0].number, data=inputs[0].data
                )
            outputs = [tensors[made.number] for made in operation.outputs]
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


def _constants(kind: str, inputs: list[_Tensor | None]) -> Iterator[tuple[_Tensor, str]]:
    """The constant weights and biases of an operator."""
    weights, biases = WEIGHTS.get(kind, ((), ()))
    for place, tensor in enumerate(inputs):
        if tensor is not None and tensor.data and place in weights + biases:
            yield tensor, "weights" if place in weights else "biases"


def _tensor(tensor: Tensor) -> _Tensor:
    # A free batch counts as the one that is stored; any other free dimension makes the size unknown.
    free = [index for index, size in enumerate(tensor.signature) if size < 0 and index]
    return _Tensor(
        tensor.number,
        tensor.name or f"tensor {tensor.number}",
        tensor.dtype if tensor.dtype != "unknown" else f"type {tensor.table.integer('type')}",
        tuple(None if place in free else size for place, size in enumerate(tensor.shape)),
        tensor.buffer if tensor.is_constant else 0,
        tensor.data,
    )


def _macs(kind: str, inputs: list[_Tensor | None], outputs: list[_Tensor]) -> int | None:
    """Multiply-accumulates of the layers that consist of them; 0 for all others."""
    if kind not in WEIGHTS or kind in ("GATHER", "EMBEDDING_LOOKUP", "PRELU"):
        return 0
    if len(inputs) < 2 or not outputs:
        return None
    first, weight = inputs[0], inputs[1]
    if first is None or weight is None:
        # An LSTM without an input gate: the forget gate's weights are always there.
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
        source = product(inputs[2].shape) if len(inputs) > 2 and inputs[2] else None
        return None if source is None else source * (kernel // (weight.shape[-1] or 1))
    if kind in ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "SVDF"):
        return _recurrent(kind, inputs, first)
    return None


def _recurrent(kind: str, inputs: list[_Tensor | None], first: _Tensor) -> int | None:
    """Each matrix is applied once per step and sample: all dimensions of the input but the last."""
    steps = product(first.shape[:-1])
    matrices = [inputs[place] for place in WEIGHTS[kind][0] if place < len(inputs)]
    sizes = [product(tensor.shape) for tensor in matrices if tensor is not None]
    if steps is None or None in sizes:
        return None
    return steps * sum(size for size in sizes if size is not None)
