"""Residual streams between normalizations in an ONNX graph."""

from typing import Any

from edgeopt.formats.residuals import streams

NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
MOVES = frozenset("Identity Reshape Transpose Squeeze Unsqueeze Slice Concat Split Flatten".split())
"""Operators that only move values."""


def residual(model: Any) -> list[str]:
    """The names of the nodes of residual streams; every node has a name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    producers = {output: node for node in model.graph.node for output in node.output}

    def is_constant(value: str) -> bool:
        return value in constants or (value in producers and producers[value].op_type == "Constant")

    def computed(name: str) -> list[str]:
        return [value for value in nodes[name].input if value and not is_constant(value)]

    def inputs(name: str) -> list[str]:
        if nodes[name].op_type not in NORMALIZATIONS | MOVES | {"Add"}:
            return []
        sources = [producers[value] for value in computed(name) if value in producers]
        return [source.name for source in sources if source.op_type in NORMALIZATIONS | MOVES | {"Add"}]

    def is_sum(name: str) -> bool:
        return nodes[name].op_type == "Add" and len(computed(name)) == 2

    starts = [name for name, node in nodes.items() if node.op_type in NORMALIZATIONS]
    return streams(starts, inputs, is_sum)
