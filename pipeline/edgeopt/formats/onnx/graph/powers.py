"""Squares whose root is taken, and cubes inside a tanh, in an ONNX graph."""

from typing import Any

from edgeopt.formats import powers as power_steps

KINDS = {
    **{name.title(): name for name in ("add", "sub", "mul", "div", "max", "tanh")},
    "Sqrt": "root",
    **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool"), "mean"),
    **dict.fromkeys(("Reshape", "Expand", "Squeeze", "Unsqueeze"), "shape"),
    "Reciprocal": "inverse",
}


def powers(model: Any) -> list[str]:
    """The names of the nodes that `edgeopt.formats.powers.powers` finds; every node has a name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    steps = []
    for node in model.graph.node:
        computed = tuple(value for value in node.input if value and value not in constants)
        kind = KINDS.get(node.op_type, "")
        result = node.output[0] if node.output else None
        steps.append(power_steps.Step(kind, computed[:1] if kind == "shape" else computed, result))
    return [model.graph.node[at].name for at in power_steps.powers(steps)]
