"""Conversion of the float inputs and outputs of a quantized ONNX graph to integers."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from edgeopt.model import TensorSpec

Ranges: TypeAlias = Mapping[str, tuple[float, float]]

RESHAPING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that only rearrange values: scale and zero point are the same before and after."""


def make_integer(model: Any, ranges: Ranges) -> None:
    """Remove the outer QuantizeLinear and DequantizeLinear nodes, so that inputs and outputs have 8 bits.

    An input or output that is used in float is converted with its calibrated range. Names are preserved.
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
    quantized = value.name
    while len(readers := _readers(graph, quantized)) == 1 and readers[0].op_type in RESHAPING:
        quantized = readers[0].output[0]
    kinds = {(node.op_type, *node.input[1:3]) for node in readers}
    # Only if all readers are quantizers with the same parameters, the input can replace their outputs.
    if len(kinds) == 1 and readers[0].op_type == "QuantizeLinear":
        zero = readers[0].input[2]
        for node in readers:
            _replace(graph, node.output[0], quantized)
            graph.node.remove(node)
    else:
        # At least one reader needs float.
        scale, zero = _constants(graph, value.name, ranges)
        real = f"{value.name}_real"
        _replace(graph, value.name, real)
        dequantizer = onnx.helper.make_node(
            "DequantizeLinear", [value.name, scale, zero], [real], name=f"{real}_made"
        )
        graph.node.insert(0, dequantizer)
    value.type.tensor_type.elem_type = _type_of(graph, zero)


def _output(model: Any, value: Any, ranges: Ranges) -> None:
    import onnx

    graph = model.graph
    dequantized = value.name
    producer = _producer(graph, dequantized)
    # Stops at a tensor with further readers, which need it in float.
    while (
        producer is not None
        and producer.op_type in RESHAPING
        and len(_readers(graph, producer.input[0])) == 1
    ):
        dequantized = producer.input[0]
        producer = _producer(graph, dequantized)
    # A graph output has no readers of its own; before a reshaping operator, that operator is the only one.
    only_output = len(_readers(graph, dequantized)) == (dequantized != value.name)
    if producer is not None and producer.op_type == "DequantizeLinear" and only_output:
        zero, stored = producer.input[2], producer.input[0]
        graph.node.remove(producer)
        if dequantized == value.name:
            # The quantized tensor takes the name of the output, which must not change.
            _replace(graph, stored, dequantized)
            for node in graph.node:
                node.output[:] = [dequantized if name == stored else name for name in node.output]
        else:
            _replace(graph, dequantized, stored)
    else:
        scale, zero = _constants(graph, value.name, ranges)
        real = f"{value.name}_real"
        _replace(graph, value.name, real)
        for node in graph.node:
            node.output[:] = [real if name == value.name else name for name in node.output]
        quantizer = onnx.helper.make_node(
            "QuantizeLinear", [real, scale, zero], [value.name], name=f"{real}_made"
        )
        graph.node.append(quantizer)
    value.type.tensor_type.elem_type = _type_of(graph, zero)


def _readers(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


def _producer(graph: Any, name: str) -> Any | None:
    return next((node for node in graph.node if name in node.output), None)


def _constants(graph: Any, name: str, ranges: Ranges) -> tuple[str, str]:
    """Add uint8 scale and zero point for the calibrated range of a tensor; returns their names."""
    from onnx import numpy_helper

    # Zero must be exactly representable.
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
    """Add scale and zero point to the specs of integer inputs or outputs, from the adjacent QDQ nodes."""
    return tuple(
        spec.model_copy(update=_scale(model.graph, spec.name)) if spec.dtype in ("int8", "uint8") else spec
        for spec in specs
    )


def _scale(graph: Any, name: str) -> dict[str, float | int]:
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    # Both directions, through reshaping operators: an input has a dequantizer after it, an output a quantizer
    # before it.
    after, before = [name], [name]
    while after or before:
        readers = _readers(graph, after[0]) if after else []
        producer = _producer(graph, before[0]) if before else None
        for node, kind in [*[(n, "DequantizeLinear") for n in readers], (producer, "QuantizeLinear")]:
            if node is not None and node.op_type == kind and len(node.input) > 2:
                scale, zero = (numpy_helper.to_array(constants[key]) for key in node.input[1:3])
                return {"scale": float(scale), "zero_point": int(zero)}
        after = [n.output[0] for n in readers if n.op_type in RESHAPING][:1]
        before = [producer.input[0]] if producer is not None and producer.op_type in RESHAPING else []
    return {}
