"""Recurrent layers with int8 weights, dequantized before the operator.

onnxruntime has an integer kernel for the LSTM alone, which quantizes its input at run time.
"""

from collections.abc import Callable, Container
from typing import Any

import numpy as np

from edgeopt.formats.onnx.graph import layers as onnx_layers

INT8_MAX = 127
NOTE = "recurrent layers have int8 weights, which are dequantized on every inference: they compute in float"


def store_int8(model: Any, names: Container[str]) -> bool:
    """Give recurrent layers int8 weights, with a DequantizeLinear and one scale per output, in place.

    Scales are symmetric and shared by the directions of a layer, because they can have one axis only.

    Args:
        model: the graph, of opset 13 or later.
        names: of nodes; others, and those without constant weights, stay as they are.

    Returns:
        Whether there was any.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, replaced = [], set[str]()
    for node in model.graph.node:
        is_layer = node.op_type in onnx_layers.RECURRENT
        weights = [(place, node.input[place]) for place in (1, 2)] if is_layer else []
        if (node.name or "".join(node.output[:1])) in names and all(name in constants for _, name in weights):
            for place, name in weights:
                values = numpy_helper.to_array(constants[name])
                if values.dtype != np.float32:
                    continue
                # [directions, gates * size, inputs]
                largest = np.maximum(np.abs(values).max(axis=(0, 2)), np.finfo(np.float32).tiny)
                scale = (largest / INT8_MAX).astype(np.float32)
                steps = np.rint(values / scale[:, np.newaxis]).astype(np.int8)
                zeros, real = np.zeros(len(scale), np.int8), f"{name}_dequantized"
                parts = {f"{name}_int8": steps, f"{name}_scale": scale, f"{name}_zero_point": zeros}
                if not replaced.issuperset(parts):
                    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in parts.items())
                    nodes.append(helper.make_node("DequantizeLinear", list(parts), [real], name=real, axis=1))
                replaced |= parts.keys()
                node.input[place] = real
        nodes.append(node)
    if not replaced:
        return False
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        # Copied first: the elements belong to the field that is cleared.
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return True


def remark(model: Any, note: Callable[[str], None]) -> None:
    """Note that a graph has layers of `store_int8`, if it does."""
    kinds = onnx_layers.RECURRENT - {"DynamicQuantizeLSTM"}
    if any(layer.kind in kinds and layer.weight == "int8" for layer in onnx_layers.read(model)):
        note(NOTE)
