"""Sentinels in a graph in the plain form."""

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.formats.sentinels import HUGE, are_mixed, reading
from edgeopt.formats.torch.graph.operators import RESHAPES, TRANSPOSES, operator_name

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

JOINING = frozenset("add sub where masked_fill".split())
PASSING = (
    JOINING
    | RESHAPES
    | TRANSPOSES
    | frozenset(
        "mul div neg abs expand slice select cat repeat index_select gather split getitem full".split()
    )
)
"""Operators with a sentinel in their result if they read one."""
PADDING = frozenset("constant_pad_nd max_pool1d max_pool2d max_pool3d max_pool2d_with_indices".split())
"""Operators for which infinity is the lowest number of the range: padding before the maximum of a window."""


def with_sentinels(
    graph: "GraphModule",
    ranges: Mapping[str, tuple[float, float]],
    unbounded: Container[str],
    weighted: Container[str],
) -> list[str]:
    """The names of the nodes that join or read sentinels.

    Args:
        graph: the graph.
        ranges: the range of every value on the calibration data, by node name.
        unbounded: the nodes with infinite values, which are not in ``ranges``.
        weighted: operators whose precision is that of their layer.
    """
    import torch

    def extent(value: Any) -> float:
        if isinstance(value, torch.fx.Node):
            if value.op == "get_attr":
                tensor = graph.get_buffer(str(value.target))
                return float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
            return max(map(abs, ranges.get(value.name, (0.0, 0.0))))
        return abs(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0

    def starts(node: "Node") -> bool:
        name = operator_name(node)
        if node.name in unbounded:
            return name not in PADDING
        if name not in JOINING | {"mul"}:
            return False
        nodes = [each for each in node.all_input_nodes if each.op != "get_attr"]
        computed = [extent(each) for each in nodes]
        constants = [extent(each) for each in node.args if each not in nodes]
        if name == "mul":  # qnnpack has no scale for this one
            return max(constants, default=0.0) >= HUGE
        # A constant may never have been selected.
        return are_mixed(computed, constants) and 2 * extent(node) >= max((*computed, *constants))

    found = reading(
        [node for node in graph.graph.nodes if node.op == "call_function"],
        lambda node: node.all_input_nodes,
        starts,
        passes=lambda node: operator_name(node) in PASSING,
        computes=lambda node: operator_name(node) in weighted,
    )
    return [str(node.name) for node in found]
