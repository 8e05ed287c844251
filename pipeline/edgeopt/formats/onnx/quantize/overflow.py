"""Int8 weights that cannot overflow on any x86 processor, and verification of a file.

Without VNNI, x86 multiplies uint8 by int8 with ``vpmaddubsw``, which adds two neighbouring products in 16
bits and saturates silently. The packing of the runtime determines which weights become neighbours: by
channel, kernel position or both. A layer is therefore safe only if *no two* weights of an output channel can
overflow for any two inputs from 0 to 255: ``255 * (a + b) <= 32767`` for its two largest weights of the same
sign. This requires at most twice the usual scale, and in practice less.

Depthwise convolutions (one input channel per output channel) do not use that instruction: their kernel
vectorizes over channels and accumulates in 32 bits.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.onnx.files.model_file import WEIGHTED

Numbers: TypeAlias = NDArray[Any]

INPUT_MAX = 255
PAIR_LIMIT = 32_767 // INPUT_MAX  # 128
WEIGHT_MAX = 127


class Stored(NamedTuple):
    """The constant quantized weights of one layer of a QDQ graph."""

    node: Any
    weight: Any
    """The DequantizeLinear of the weights."""
    bias: Any | None
    """The DequantizeLinear of the bias, if it has one."""
    axis: int
    """Axis of the output channels."""
    depthwise: bool

    @property
    def name(self) -> str:
        return str(self.node.name or self.node.output[0])


def pairs(rows: Numbers) -> Numbers:
    """Per row (output channel), the largest magnitude of the sum of two entries of the same sign."""
    ordered = np.sort(rows, axis=1)
    # A single weight has no partner; its own limit is the range of int8.
    if rows.shape[1] == 1:
        return np.asarray(np.abs(ordered[:, 0]))
    above = np.maximum(ordered[:, -1], 0) + np.maximum(ordered[:, -2], 0)
    below = np.maximum(-ordered[:, 0], 0) + np.maximum(-ordered[:, 1], 0)
    return np.asarray(np.maximum(above, below))


def safe_scales(rows: Numbers) -> NDArray[np.float32]:
    """The smallest scale per row for which every entry and every pair is within its limit."""
    scales = np.maximum(np.abs(rows).max(axis=1) / WEIGHT_MAX, pairs(rows) / PAIR_LIMIT)
    return np.asarray(np.maximum(scales, np.finfo(np.float32).tiny), np.float32)


def stored(model: Any) -> list[Stored]:
    """The layers whose weights are int8 or uint8 constants behind a DequantizeLinear."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    layers = []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        weight = producers.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in constants:
            continue
        dims = constants[weight.input[0]].dims
        bias = producers.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        depthwise = node.op_type == "Conv" and group > 1 and dims[1] == 1 and group == dims[0]
        layers.append(Stored(node, weight, bias, axis_of(node, len(dims)), depthwise))
    return layers


def axis_of(node: Any, rank: int) -> int:
    """The axis of the output channels in a layer's weights."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else 1
    return rank - 1


def rows_of(values: Numbers, axis: int) -> Numbers:
    """The weights as a matrix with one row per output channel."""
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(len(moved), -1)


def worst_pairs(model: Any) -> dict[str, int]:
    """Per layer with int8 weights, the largest sum of two products for any uint8 input.

    Above 32767 it overflows. Skips depthwise convolutions and uint8 weights: their kernels widen to 32 bits.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sums = {}
    for layer in stored(model):
        values = numpy_helper.to_array(constants[layer.weight.input[0]])
        if values.dtype == np.int8 and not layer.depthwise:
            sums[layer.name] = INPUT_MAX * int(pairs(rows_of(values.astype(np.int64), layer.axis)).max())
    return sums
