"""Layers of a graph that can be quantized, their names for users, and per-layer settings by pattern."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgeopt.formats.layer_names import calls, matching
from edgeopt.formats.torch.graph.layers import layer_name
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.graph.recurrent import GATES as RECURRENT
from edgeopt.formats.torch.graph.recurrent import stack_name

if TYPE_CHECKING:
    from torch.fx import GraphModule

SHOWN = 6
"""Number of names in a message."""
FLOAT_BYTES, INT8_BYTES = 4, 1

Setting = TypeVar("Setting")
"""A per-layer setting: the precision, or the number of bits."""


class Quantizable(NamedTuple):
    """A layer with weights. ``node`` is its name in the graph, ``name`` the one shown to users."""

    node: str
    name: str
    kind: str
    elements: int
    """Number of weights."""

    @property
    def growth(self) -> int:
        """Additional bytes in the file if the layer stays in float instead of int8."""
        return self.elements * (FLOAT_BYTES - INT8_BYTES)


def quantizable(graph: "GraphModule", kinds: Iterable[str] = WEIGHTED) -> tuple[Quantizable, ...]:
    """Layers of the given kinds of operators, in order of execution.

    A layer has its name in the source model, with ``_`` for ``.``, if its weight still carries that name.
    Otherwise it is named after its operator: ``conv2d``, ``conv2d_1`` and so on, or ``aten.conv2d_1`` if a
    layer of the source already has that name. Further calls of a layer append their number: ``conv1:2``.
    """
    operators = frozenset(kinds)
    nodes = [node for node in graph.graph.nodes if operator_name(node) in operators]
    known = [_name(node) for node in nodes]
    names = calls(
        name or (f"aten.{node.name}" if node.name in known else str(node.name))
        for node, name in zip(nodes, known, strict=True)
    )
    return tuple(
        Quantizable(str(node.name), name, operator_name(node), _elements(node, graph))
        for node, name in zip(nodes, names, strict=True)
    )


def joined_outputs(graph: "GraphModule", kinds: Iterable[str] = WEIGHTED) -> tuple[str, ...]:
    """The nodes after the last layers that join values of several layers in one output, and those after them.

    Nodes before, such as an activation, are part of their layer.
    """
    operators = frozenset(kinds)
    after: dict[str, Any] = {}
    for node in reversed(list(graph.graph.nodes)):
        inner = (
            node.op in ("call_function", "call_method", "call_module")
            and operator_name(node) not in operators
        )
        if inner and all(user.op == "output" or user.name in after for user in node.users):
            after[node.name] = node
    joined: dict[str, Any] = {}
    for name, node in reversed(after.items()):
        if operator_name(node) in ("cat", "concat") or any(at.name in joined for at in node.all_input_nodes):
            joined[name] = node
    return tuple(joined)


def _name(node: Any) -> str:
    """Layer name derived from its weights; empty if they do not contain one."""
    if not _is_stack(node):
        name = layer_name(node) if node.args[1].op == "get_attr" else ""
        # Export calls a tensor that is no parameter or buffer lifted_tensor_0: that names no layer.
        return "" if name.startswith("lifted_tensor") else name
    return stack_name(node)


def _is_stack(node: Any) -> bool:
    """Whether a node runs all layers of an LSTM or GRU, with their weights in one list."""
    return operator_name(node) in RECURRENT


def _elements(node: Any, graph: "GraphModule") -> int:
    constants = node.args[2] if _is_stack(node) else node.args[1:2]
    return sum(graph.get_buffer(str(c.target)).numel() for c in constants if c.op == "get_attr")


def precisions(layers: Iterable[Quantizable], patterns: Mapping[str, Setting]) -> dict[str, Setting]:
    """Setting of each layer that a pattern matches, by layer name; the last matching pattern wins.

    A pattern may also give the name of the layer's operator in the graph, such as ``conv2d_1``.

    Raises:
        StageError: a pattern matches no layer; the message suggests similar names.
    """
    names = {layer.name: (layer.node,) for layer in layers}
    return {name: patterns[pattern] for name, pattern in matching(patterns, names).items()}


def named(names: Iterable[str]) -> str:
    """Join names for a message, abbreviated after ``SHOWN`` names."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
