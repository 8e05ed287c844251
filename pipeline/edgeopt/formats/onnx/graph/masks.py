"""Attention masks in an ONNX graph."""

from collections.abc import Iterator
from typing import Any

from edgeopt.formats.masks import LOWEST, masking

PASSING = frozenset(
    "Add Sub Mul Div Where Max Min Cast Reshape Transpose Unsqueeze Squeeze Expand Slice Identity "
    "Softmax".split()
)
"""Operators through which a mask reaches a softmax."""


def masked(model: Any) -> list[str]:
    """The names of the nodes between masks and softmax operators, both included; every node has a name."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    producers = {output: node.name for node in model.graph.node for output in node.output}

    def inputs(name: str) -> Iterator[str]:
        if nodes[name].op_type in PASSING:
            yield from (producers[value] for value in nodes[name].input if value in producers)

    def masks(name: str) -> bool:
        if nodes[name].op_type == "Constant":
            values = [numpy_helper.to_array(a.t) for a in nodes[name].attribute if a.name == "value"]
        else:
            values = [numpy_helper.to_array(constants[v]) for v in nodes[name].input if v in constants]
            if nodes[name].op_type not in PASSING:
                return False
        return any(v.dtype.kind == "f" and v.size > 0 and float(v.min()) <= LOWEST for v in values)

    softmaxes = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    return masking(softmaxes, inputs, masks)
