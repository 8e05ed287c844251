"""Inputs and outputs of a quantized ONNX graph as integers instead of float."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from edgeopt.model import TensorSpec

Ranges: TypeAlias = Mapping[str, tuple[float, float]]

MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move values about without changing them: a scale holds before and after."""


def make_integer(model: Any, ranges: Ranges) -> None:
    """Take the outer QuantizeLinear and DequantizeLinear away, so that the file takes and gives 8 bits.

    An end that the graph has in float is given its calibrated range. Names stay.
    """
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == 1:
            _input(model, value, ranges)
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == 1:
            _output(model, value, ranges)


def _input(model: Any, value: Any, ranges: Ranges) -> None:
    import onnx

    graph = model.graph
    moved = value.name
    while len(readers := _readers(graph, moved)) == 1 and readers[0].op_type in MOVES:
        moved = readers[0].output[0]
    kinds = {(node.op_type, *node.input[1:3]) for node in readers}
    if len(kinds) == 1 and readers[0].op_type == "QuantizeLinear":
        zero = readers[0].input[2]
        for node in readers:
            _replace(graph, node.output[0], moved)
            graph.node.remove(node)
    else:
        # Whoever reads the input in float goes on to do so.
        scale, zero = _constants(graph, value.name, ranges)
        real = f"{value.name}_real"
        _replace(graph, value.name, real)
        made = onnx.helper.make_node(
            "DequantizeLinear", [value.name, scale, zero], [real], name=f"{real}_made"
        )
        graph.node.insert(0, made)
    value.type.tensor_type.elem_type = _type_of(graph, zero)


def _output(model: Any, value: Any, ranges: Ranges) -> None:
    import onnx

    graph = model.graph
    moved = value.name
    maker = _maker(graph, moved)
    # What else reads a tensor on the way needs it in float.
    while maker is not None and maker.op_type in MOVES and len(_readers(graph, maker.input[0])) == 1:
        moved = maker.input[0]
        maker = _maker(graph, moved)
    ends_here = len(_readers(graph, moved)) == (moved != value.name)
    if maker is not None and maker.op_type == "DequantizeLinear" and ends_here:
        zero, stored = maker.input[2], maker.input[0]
        graph.node.remove(maker)
        if moved == value.name:
            _replace(graph, stored, moved)
            for node in graph.node:
                node.output[:] = [moved if name == stored else name for name in node.output]
        else:
            _replace(graph, moved, stored)
    else:
        scale, zero = _constants(graph, value.name, ranges)
        real = f"{value.name}_real"
        _replace(graph, value.name, real)
        for node in graph.node:
            node.output[:] = [real if name == value.name else name for name in node.output]
        node = onnx.helper.make_node("QuantizeLinear", [real, scale, zero], [value.name], name=f"{real}_made")
        graph.node.append(node)
    value.type.tensor_type.elem_type = _type_of(graph, zero)


def _readers(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


def _maker(graph: Any, name: str) -> Any | None:
    return next((node for node in graph.node if name in node.output), None)


def _constants(graph: Any, name: str, ranges: Ranges) -> tuple[str, str]:
    from onnx import numpy_helper

    low, high = min(ranges[name][0], 0.0), max(ranges[name][1], 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    names = f"{name}_end_scale", f"{name}_end_zero_point"
    for values, target in zip((np.asarray(scale), np.asarray(zero)), names, strict=True):
        graph.initializer.append(numpy_helper.from_array(values, target))
    return names


def _replace(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _type_of(graph: Any, name: str) -> int:
    return next(int(tensor.data_type) for tensor in graph.initializer if tensor.name == name)


def with_scales(model: Any, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Specs of integer inputs or outputs with scale and zero point, as the nodes beside them say."""
    return tuple(
        spec.model_copy(update=_scale(model.graph, spec.name)) if spec.dtype in ("int8", "uint8") else spec
        for spec in specs
    )


def _scale(graph: Any, name: str) -> dict[str, float | int]:
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    ahead, behind = [name], [name]
    while ahead or behind:
        readers = _readers(graph, ahead[0]) if ahead else []
        maker = _maker(graph, behind[0]) if behind else None
        for node, kind in [*[(n, "DequantizeLinear") for n in readers], (maker, "QuantizeLinear")]:
            if node is not None and node.op_type == kind and len(node.input) > 2:
                scale, zero = (numpy_helper.to_array(constants[key]) for key in node.input[1:3])
                return {"scale": float(scale), "zero_point": int(zero)}
        ahead = [n.output[0] for n in readers if n.op_type in MOVES][:1]
        behind = [maker.input[0]] if maker is not None and maker.op_type in MOVES else []
    return {}
