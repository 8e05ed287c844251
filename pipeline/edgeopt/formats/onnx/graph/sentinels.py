"""Sentinels in an ONNX graph."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from edgeopt.formats.onnx.files.model_file import WEIGHTED
from edgeopt.formats.sentinels import are_mixed, reading

JOINING = frozenset("Add Sub Where".split())
PASSING = JOINING | frozenset(
    "Mul Div Neg Abs Reshape Transpose Expand Unsqueeze Squeeze Slice Concat Tile Gather Split "
    "Identity".split()
)
"""Operators with a sentinel in their result if they read one."""
PADDING = frozenset({"Pad", "MaxPool"})
"""Operators for which infinity is the lowest number of the range: padding before the maximum of a window."""


def with_sentinels(
    model: Any, ranges: Mapping[str, tuple[float, float]], unbounded: Container[str], layers: Container[str]
) -> list[str]:
    """The names of the nodes that join or read sentinels, except ``layers``; every node has a name.

    ``unbounded`` are the values that are infinite on the calibration data, which are not in ``ranges``.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute}
    nodes = {node.name: node for node in model.graph.node if node.output}
    producers = {output: node.name for node in model.graph.node for output in node.output}

    def extent(value: str) -> float:
        if value not in constants:
            return max(map(abs, ranges.get(value, (0.0, 0.0))))
        array = numpy_helper.to_array(constants[value])
        return float(np.abs(array).max()) if array.dtype.kind == "f" and array.size else 0.0

    def starts(name: str) -> bool:
        node = nodes[name]
        if any(output in unbounded for output in node.output):
            return node.op_type not in PADDING
        computed = [extent(value) for value in node.input if value not in constants]
        fixed = [extent(value) for value in node.input if value in constants]
        # A constant may never have been selected.
        is_kept = 2 * extent(node.output[0]) >= max((*computed, *fixed), default=0.0)
        return node.op_type in JOINING and are_mixed(computed, fixed) and is_kept

    return reading(
        nodes,
        lambda name: [producers[value] for value in nodes[name].input if value in producers],
        starts,
        passes=lambda name: nodes[name].op_type in PASSING,
        computes=lambda name: name in layers or nodes[name].op_type in WEIGHTED,
    )
