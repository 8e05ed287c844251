"""Graphs of one operator each, to find which of them a converter refuses."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.graph_editor import LINE
from edgeopt.formats.torch.graph.layers import layer_name
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.lab.engine import one_thread

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

TRIED = 60
"""Number of operators that are converted alone to find one that fails: about a second each."""


class Isolated(NamedTuple):
    """One operator as a graph of its own, with inputs of the shapes that it has in the model."""

    label: str
    """Operator and layer, such as ``aten.fold after layer conv1``."""
    line: str
    """The line of the user's code that it is from; empty if unknown."""
    module: "GraphModule"
    inputs: "tuple[torch.Tensor, ...]"


def isolated(graph: "GraphModule", inputs: "Sequence[torch.Tensor]") -> Iterator[Isolated]:
    """Every distinct operator of a graph in the plain form, in order of execution.

    Operators that differ only in the values of their operands are yielded once.
    """
    import torch

    values: dict[Any, Any] = {}
    seen: set[str] = set()
    given = iter(inputs)
    with torch.no_grad(), one_thread():
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = graph.get_buffer(str(node.target))
            elif node.op == "call_function":
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda key: values[key])
                values[node] = node.target(*args, **kwargs)
                tensors = [values[source] for source in node.all_input_nodes]
                if any(not isinstance(value, torch.Tensor) for value in tensors):
                    continue  # an element of several results
                shapes = [(tuple(value.shape), value.dtype) for value in tensors]
                key = f"{node.target} {node.args} {node.kwargs} {shapes}"
                for source in node.all_input_nodes:
                    key = key.replace(str(source), source.op)
                if key not in seen:
                    seen.add(key)
                    yield _alone(node, values)


def _alone(node: "Node", values: dict[Any, Any]) -> Isolated:
    import torch

    root, graph, known, examples = torch.nn.Module(), torch.fx.Graph(), {}, []
    for number, source in enumerate(node.all_input_nodes):
        if source.op == "get_attr":
            root.register_buffer(f"constant_{number}", values[source])
            known[source] = graph.get_attr(f"constant_{number}")
        else:
            known[source] = graph.placeholder(f"input_{number}")
            examples.append(values[source])
    graph.output(graph.node_copy(node, lambda old: known[old]))
    line = str(node.meta.get(LINE, ""))
    return Isolated(_label(node), line, torch.fx.GraphModule(root, graph).eval(), tuple(examples))


def _label(node: "Node") -> str:
    """Operator, and the layer that it is or that computes its input."""
    name = operator_name(node)
    operator = name if ":" in name or "." in name else f"aten.{name}"
    if name in WEIGHTED:
        return f"{operator} of layer {layer_name(node)}"
    before, found = list(node.all_input_nodes), set[Any]()
    while before:
        source = before.pop(0)
        if operator_name(source) in WEIGHTED:
            return f"{operator} after layer {layer_name(source)}"
        if source not in found:
            found.add(source)
            before.extend(source.all_input_nodes)
    return operator
