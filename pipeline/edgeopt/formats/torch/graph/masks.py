"""Attention masks in a graph of PyTorch operators."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeopt.formats.masks import LOWEST, masking
from edgeopt.formats.torch.graph.operators import BINARY, NO_OPS, RESHAPES, SOFTMAX, TRANSPOSES, operator_name

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

SELECTING = "where masked_fill expand expand_copy slice slice_copy select to _to_copy full full_like"
PASSING = BINARY | NO_OPS | RESHAPES | SOFTMAX | TRANSPOSES | frozenset(SELECTING.split())
"""Operators through which a mask reaches a softmax."""


def masked(graph: "GraphModule") -> list[str]:
    """The names of the nodes between masks and softmax operators, both included."""
    import torch

    def inputs(node: "Node") -> Iterator["Node"]:
        if operator_name(node) in PASSING:
            yield from (source for source in node.all_input_nodes if source.op == "call_function")

    def is_low(value: Any) -> bool:
        if isinstance(value, torch.fx.Node):
            tensor = graph.get_buffer(str(value.target)) if value.op == "get_attr" else None
            value = float(tensor.min()) if tensor is not None and _is_number(tensor) else 0.0
        return isinstance(value, int | float) and not isinstance(value, bool) and value <= LOWEST

    def masks(node: "Node") -> bool:
        return operator_name(node) in PASSING and any(map(is_low, node.args))

    softmaxes = [node for node in graph.graph.nodes if operator_name(node) in SOFTMAX]
    return [str(node.name) for node in masking(softmaxes, inputs, masks)]


def _is_number(tensor: Any) -> bool:
    return bool(tensor.is_floating_point()) and tensor.numel() > 0
