"""Which layers of a plain graph there are, what users call them, and which of them a pattern means."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.torch.layers import layer_name
from edgeopt.formats.torch.operators import WEIGHTED, operator_name

if TYPE_CHECKING:
    from torch.fx import GraphModule

SHOWN = 6
FLOAT_BYTES, INT8_BYTES = 4, 1


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
    otherwise by its operator: ``conv2d``, ``conv2d_1`` and so on.
    """
    found: list[Quantizable] = []
    taken: set[str] = set()
    wanted = frozenset(kinds)
    for node in graph.graph.nodes:
        kind = operator_name(node)
        if kind in wanted:
            name = _name(node)
            name = str(node.name) if name in taken or not name else name
            taken.add(name)
            found.append(Quantizable(str(node.name), name, kind, _elements(node, graph)))
    return tuple(found)


def _name(node: Any) -> str:
    if operator_name(node) in WEIGHTED:
        name = layer_name(node)
        return "" if name.startswith("lifted_tensor") else name
    constants = node.args[2]
    first = str(constants[0].target) if constants and constants[0].op == "get_attr" else ""
    return first.removeprefix("model_").removesuffix("_weight_ih_l0")


def _elements(node: Any, graph: "GraphModule") -> int:
    constants = node.args[1:2] if operator_name(node) in WEIGHTED else node.args[2]
    return sum(graph.get_buffer(str(c.target)).numel() for c in constants if c.op == "get_attr")


def precisions(layers: Iterable[Quantizable], patterns: Mapping[str, str]) -> dict[str, str]:
    """What ``patterns`` says of each layer, by name; the last one that fits counts. Others are left out.

    A pattern (as of `fnmatch`) means the layers whose name it is, in the model's spelling
    (``layer1.0.conv1``), the graph's (``layer1_0_conv1``), or by operator (``conv2d_1``); where there is
    none, those in whose names it occurs.

    Raises:
        StageError: a pattern means no layer; it names the nearest.
    """
    found: dict[str, str] = {}
    several = tuple(layers)
    for pattern, precision in patterns.items():
        wanted = pattern.replace(".", "_")
        fitting = [layer for layer in several if _fits(layer, wanted)]
        fitting = fitting or [layer for layer in several if _fits(layer, f"*{wanted}*")]
        if not fitting:
            names = [layer.name for layer in several]
            near = get_close_matches(wanted, names, n=SHOWN, cutoff=0.4) or names[:SHOWN]
            raise StageError(
                f"no layer fits the pattern {pattern!r}",
                fix=f"'layers' takes names or patterns of the model's {len(names)} layers, such as "
                f"{', '.join(near)}",
            )
        found |= {layer.name: precision for layer in fitting}
    return found


def _fits(layer: Quantizable, pattern: str) -> bool:
    return fnmatchcase(layer.name, pattern) or fnmatchcase(layer.node, pattern)


def named(names: Iterable[str]) -> str:
    """A list of names for a message, not too long."""
    several = list(names)
    more = f" and {len(several) - SHOWN} more" if len(several) > SHOWN else ""
    return ", ".join(several[:SHOWN]) + more
