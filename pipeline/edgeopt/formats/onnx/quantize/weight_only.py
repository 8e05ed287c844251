"""Weight-only quantization of ONNX graphs to 4 or 8 bits; activations stay float."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize.overflow import Numbers, axis_of, rows_of

OPSET = 21
"""First opset version whose DequantizeLinear supports int4."""
LEVELS = {"int4": 7, "int8": 127}
SHARES = tuple(0.5 + index * 0.02 for index in range(26))
"""Candidates for the clipping value, as a fraction of the largest weight."""


def make(prepared: Path, plan: Mapping[str, str], block: int) -> Any:
    """Quantize the weights of each layer to its precision in ``plan``: ``int4``, ``int8`` or ``float32``.

    Matrix products in int4 become MatMulNBits with one scale per ``block`` weights of an output; all other
    layers get a DequantizeLinear with one scale per output channel, which the directions of a recurrent
    layer share. Scales minimize the squared error.

    Raises:
        StageError: the weights of a layer are not constant, or the graph cannot be converted to opset 21.
    """
    model = onnx_model_file.at_opset(onnx_model_file.load(prepared), OPSET, "4 bits")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    nodes = []
    for node in model.graph.node:
        precision = plan.get(node.name or node.output[0], "float32")
        recurrent = node.op_type in onnx_layers.RECURRENT
        if not (recurrent or node.op_type in onnx_model_file.WEIGHTED) or precision == "float32":
            nodes.append(node)
            continue
        names = node.input[1 : 3 if recurrent else 2]
        if not all(name in constants for name in names):
            raise StageError(
                f"{node.op_type} {node.name} has no constant weights to quantize to {precision}",
                fix=f"exclude it: layers: {{'{node.name}': float32}}",
            )
        tensors = [constants[name] for name in names]
        if recurrent:
            # [directions, gates * size, inputs], of the input and of the state.
            weights = enumerate(tensors, 1)
            nodes += [_dequantized(model.graph, node, at, tensor, 1, precision) for at, tensor in weights]
            nodes.append(node)
        else:
            nodes += _replaced(model.graph, node, tensors[0], precision, block)
        for tensor in tensors:
            readers[tensor.name] -= 1
    kept = [tensor for tensor in model.graph.initializer if readers.get(tensor.name, 1) > 0]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        # Copied first: the elements belong to the field that is cleared.
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    onnx_model_file.strip(model)
    return model


def _replaced(graph: Any, node: Any, tensor: Any, precision: str, block: int) -> list[Any]:
    """The nodes that replace a layer; its quantized weights are added to the initializers."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    axis = axis_of(node, values.ndim)
    # MatMulNBits computes A @ B of two-dimensional B only, without alpha, beta or a transposed A.
    plain = values.ndim == 2 and (node.op_type == "MatMul" or _plain_gemm(node))
    if precision == "int4" and plain:
        return _blockwise(graph, node, rows_of(values, axis), tensor.name, block)
    return [_dequantized(graph, node, 1, tensor, axis, precision), node]


def _dequantized(graph: Any, node: Any, place: int, tensor: Any, axis: int, precision: str) -> Any:
    """A DequantizeLinear of the weights at an input of a layer, with one scale per element of an axis."""
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    rows = rows_of(values.astype(np.float64), axis)
    scales = least_error_scales(rows, LEVELS[precision])
    steps = _steps(rows, scales, LEVELS[precision]).reshape(np.moveaxis(values, axis, 0).shape)
    stored = np.ascontiguousarray(np.moveaxis(steps, 0, axis))
    name = f"{tensor.name}_{precision}"
    # Layers may share weights.
    if not any(t.name == name for t in graph.initializer):
        graph.initializer.append(_integers(stored, name, precision))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
        graph.initializer.append(_integers(np.zeros_like(scales), f"{name}_zero", precision))
    # The first output of a recurrent layer may be unused.
    result = next(name for name in node.output if name)
    real = f"{result}_weight" if place == 1 else f"{result}_weight_{place}"
    dequantizer = helper.make_node(
        "DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [real], name=real, axis=axis
    )
    node.input[place] = real
    return dequantizer


def _integers(values: Numbers, name: str, precision: str) -> Any:
    """An int8 or packed int4 initializer."""
    import onnx

    if precision == "int8":
        return onnx.numpy_helper.from_array(values.astype(np.int8), name)
    # Two values per byte, the first in the low nibble.
    flat = values.astype(np.int8).reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, np.int8)).astype(np.uint8) & 15
    packed = flat[0::2] | (flat[1::2] << 4)
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT4, values.shape, packed.tobytes(), raw=True)


def _plain_gemm(node: Any) -> bool:
    """Whether a node is a Gemm equivalent to a MatMul with bias."""
    import onnx

    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    neutral = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0
    return node.op_type == "Gemm" and neutral and not options.get("transA", 0)


def _blockwise(graph: Any, node: Any, rows: Numbers, name: str, block: int) -> list[Any]:
    """A MatMulNBits with weights ``rows`` ``[outputs, inputs]``, and an Add for the bias."""
    from onnx import helper, numpy_helper

    outputs, inputs = rows.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block))
    padded[:, :inputs] = rows
    pieces = padded.reshape(-1, block)
    scales = least_error_scales(pieces, LEVELS["int4"])
    # Offset by 8, the implicit zero point of the operator.
    steps = (_steps(pieces, scales, LEVELS["int4"]) + 8).astype(np.uint8)
    packed = (steps[:, 0::2] | (steps[:, 1::2] << 4)).reshape(outputs, blocks, block // 2)
    stored = f"{name}_int4"
    if not any(t.name == stored for t in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(packed, stored))
        graph.initializer.append(numpy_helper.from_array(scales.reshape(outputs, blocks), f"{stored}_scale"))
    has_bias = len(node.input) > 2 and node.input[2]
    result = f"{node.output[0]}_product" if has_bias else node.output[0]
    product = helper.make_node(
        onnx_layers.BLOCKWISE,
        [node.input[0], stored, f"{stored}_scale"],
        [result],
        name=node.name or node.output[0],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=4,
        block_size=block,
    )
    nodes = [product]
    if has_bias:
        nodes.append(
            helper.make_node("Add", [result, node.input[2]], [node.output[0]], name=f"{result}_bias")
        )
    return nodes


def least_error_scales(rows: Numbers, levels: int) -> NDArray[np.float32]:
    """Per row, the symmetric scale with the least squared error for integers in ``[-levels, levels]``."""
    largest = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
    best = np.full(len(rows), np.inf)
    result = largest / levels
    for share in SHARES:
        scales = largest * share / levels
        error = np.square(_steps(rows, scales, levels) * scales[:, np.newaxis] - rows).sum(axis=1)
        result = np.where(error < best, scales, result)
        best = np.minimum(error, best)
    return np.asarray(result, np.float32)


def _steps(rows: Numbers, scales: Numbers, levels: int) -> Numbers:
    return np.asarray(np.clip(np.rint(rows / scales[:, np.newaxis]), -levels, levels))
