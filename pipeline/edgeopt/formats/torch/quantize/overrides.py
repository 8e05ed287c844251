"""Which layers of a plain graph there are, what users call them, and which of them a pattern means."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgeopt.formats.layer_names import calls, matching
from edgeopt.formats.torch.graph.layers import layer_name
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name

if TYPE_CHECKING:
    from torch.fx import GraphModule

SHOWN = 6
FLOAT_BYTES, INT8_BYTES = 4, 1


Said = TypeVar("Said")
"""What is said of a layer: its precision, or its number of bits."""


class Quantizable(NamedTuple):
    """One layer with weights. ``node`` is its name in the graph, ``name`` what it is called to users."""

    node: str
    name: str
    kind: str
    elements: int
    """Number of weights."""

    @property
    def growth(self) -> int:
        """Bytes by which a file grows if the layer stays in float instead of int8."""
        return self.elements * (FLOAT_BYTES - INT8_BYTES)


def quantizable(graph: "GraphModule", kinds: Iterable[str] = WEIGHTED) -> tuple[Quantizable, ...]:
    """The layers of these kinds of operators, in the order in which they run.

    A layer is called as in the source model, with ``_`` for ``.``, where its weight still tells that, and
    otherwise by its operator: ``conv2d``, ``conv2d_1`` and so on, or ``aten.conv2d_1`` where a layer of the
    source has that name. A second call of a layer has its number behind the name, ``conv1:2``.
    """
    wanted = frozenset(kinds)
    nodes = [node for node in graph.graph.nodes if operator_name(node) in wanted]
    known = [_name(node) for node in nodes]
    names = calls(
        name or (f"aten.{node.name}" if node.name in known else str(node.name))
        for node, name in zip(nodes, known, strict=True)
    )
    return tuple(
        Quantizable(str(node.name), name, operator_name(node), _elements(node, graph))
        for node, name in zip(nodes, names, strict=True)
    )


def _name(node: Any) -> str:
    """What the weights tell of the layer's name, or nothing."""
    if operator_name(node) in WEIGHTED:
        name = layer_name(node) if node.args[1].op == "get_attr" else ""
        return "" if name.startswith("lifted_tensor") else name
    constants = node.args[2]
    first = str(constants[0].target) if constants and constants[0].op == "get_attr" else ""
    return first.removeprefix("model_").removesuffix("_weight_ih_l0")


def _elements(node: Any, graph: "GraphModule") -> int:
    constants = node.args[1:2] if operator_name(node) in WEIGHTED else node.args[2]
    return sum(graph.get_buffer(str(c.target)).numel() for c in constants if c.op == "get_attr")


def precisions(layers: Iterable[Quantizable], patterns: Mapping[str, Said]) -> dict[str, Said]:
    """What ``patterns`` says of each layer, by name; the last one that fits counts. Others are left out.

    Beside its name, a layer goes by that of its operator in the graph: ``conv2d_1``.

    Raises:
        StageError: a pattern means no layer; it names the nearest.
    """
    names = {layer.name: (layer.node,) for layer in layers}
    return {name: patterns[pattern] for name, pattern in matching(patterns, names).items()}


def named(names: Iterable[str]) -> str:
    """A list of names for a message, not too long."""
    several = list(names)
    more = f" and {len(several) - SHOWN} more" if len(several) > SHOWN else ""
    return ", ".join(several[:SHOWN]) + more
