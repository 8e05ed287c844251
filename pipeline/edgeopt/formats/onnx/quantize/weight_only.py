"""A float ONNX graph with its weights in 4 or 8 bits, and nothing else."""

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
"""The first whose DequantizeLinear knows 4 bits."""
LEVELS = {"int4": 7, "int8": 127}
SHARES = np.linspace(0.5, 1.0, 26)
"""Of the largest weight: what the largest step may stand for."""


def make(prepared: Path, plan: Mapping[str, str], block: int) -> Any:
    """The graph with the layers' weights in the plan's precision: ``int4``, ``int8`` or ``float32``.

    Matrix products in int4 become MatMulNBits with one scale for every ``block`` weights of an output;
    everything else gets a DequantizeLinear with one scale per output channel. Scales are those of the least
    squared error.

    Raises:
        StageError: a layer's weights are not constant, or the graph cannot be brought to opset 21.
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
        if node.op_type not in onnx_model_file.WEIGHTED or precision == "float32":
            nodes.append(node)
            continue
        tensor = constants.get(node.input[1])
        if tensor is None:
            raise StageError(
                f"{node.op_type} {node.name} has no constant weights to store in {precision}",
                fix=f"leave it out: layers: {{'{node.name}': float32}}",
            )
        nodes += _replaced(model.graph, node, tensor, precision, block)
        readers[tensor.name] -= 1
    kept = [tensor for tensor in model.graph.initializer if readers.get(tensor.name, 1) > 0]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    onnx_model_file.strip(model)
    return model


def _replaced(graph: Any, node: Any, tensor: Any, precision: str, block: int) -> list[Any]:
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    axis = axis_of(node, values.ndim)
    plain = values.ndim == 2 and (node.op_type == "MatMul" or _plain_gemm(node))
    if precision == "int4" and plain:
        return _blockwise(graph, node, rows_of(values, axis), tensor.name, block)
    rows = rows_of(values.astype(np.float64), axis)
    scales = least_error_scales(rows, LEVELS[precision])
    steps = _steps(rows, scales, LEVELS[precision]).reshape(np.moveaxis(values, axis, 0).shape)
    stored = np.ascontiguousarray(np.moveaxis(steps, 0, axis))
    name = f"{tensor.name}_{precision}"
    if not any(t.name == name for t in graph.initializer):
        graph.initializer.append(_integers(stored, name, precision))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
        graph.initializer.append(_integers(np.zeros_like(scales), f"{name}_zero", precision))
    real = f"{node.output[0]}_weight"
    made = helper.make_node(
        "DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [real], name=real, axis=axis
    )
    node.input[1] = real
    return [made, node]


def _integers(values: Numbers, name: str, precision: str) -> Any:
    import onnx

    if precision == "int8":
        return onnx.numpy_helper.from_array(values.astype(np.int8), name)
    # Two values in a byte, the first in the low half.
    flat = values.astype(np.int8).reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, np.int8)).astype(np.uint8) & 15
    packed = flat[0::2] | (flat[1::2] << 4)
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT4, values.shape, packed.tobytes(), raw=True)


def _plain_gemm(node: Any) -> bool:
    import onnx

    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    neutral = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0
    return node.op_type == "Gemm" and neutral and not options.get("transA", 0)


def _blockwise(graph: Any, node: Any, rows: Numbers, name: str, block: int) -> list[Any]:
    """A MatMulNBits, and an Add for the bias; ``rows`` ``[outputs, inputs]``."""
    from onnx import helper, numpy_helper

    outputs, inputs = rows.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block))
    padded[:, :inputs] = rows
    pieces = padded.reshape(-1, block)
    scales = least_error_scales(pieces, LEVELS["int4"])
    # Stored with 8 added, which is the operator's own zero point.
    steps = (_steps(pieces, scales, LEVELS["int4"]) + 8).astype(np.uint8)
    packed = (steps[:, 0::2] | (steps[:, 1::2] << 4)).reshape(outputs, blocks, block // 2)
    stored = f"{name}_int4"
    if not any(t.name == stored for t in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(packed, stored))
        graph.initializer.append(numpy_helper.from_array(scales.reshape(outputs, blocks), f"{stored}_scale"))
    biased = len(node.input) > 2 and node.input[2]
    result = f"{node.output[0]}_product" if biased else node.output[0]
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
    model_nodes = [product]
    if biased:
        model_nodes.append(
            helper.make_node("Add", [result, node.input[2]], [node.output[0]], name=f"{result}_bias")
        )
    return model_nodes


def least_error_scales(rows: Numbers, levels: int) -> NDArray[np.float32]:
    """Per row, the symmetric scale that leaves the least squared error with steps of -levels to levels."""
    largest = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
    best = np.full(len(rows), np.inf)
    found = largest / levels
    for share in SHARES:
        scales = largest * share / levels
        error = np.square(_steps(rows, scales, levels) * scales[:, np.newaxis] - rows).sum(axis=1)
        found = np.where(error < best, scales, found)
        best = np.minimum(error, best)
    return np.asarray(found, np.float32)


def _steps(rows: Numbers, scales: Numbers, levels: int) -> Numbers:
    return np.asarray(np.clip(np.rint(rows / scales[:, np.newaxis]), -levels, levels))
