"""Wrapping of every layer of a graph in a module that carries its name.

litert-torch discards the names of nodes and weights, but names the output of an operation after its
enclosing modules: ``edgeopt.Layer_conv2d_1`` for the layer ``conv2d_1``.
"""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.layer_names import MODULE, MODULE_CLASS
from edgeopt.formats.torch.graph.operators import WEIGHTED
from edgeopt.formats.torch.graph.recurrent import STEP_LOOP
from edgeopt.formats.torch.quantize.overrides import quantizable

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule


def with_named_layers(graph: "GraphModule") -> "GraphModule":
    """Return the same graph with each weighted layer called as a module.

    Constants stay in the root module and are passed to the layer modules as arguments.
    """
    import torch

    root = torch.nn.Module()
    result = torch.fx.Graph()
    known: dict[Any, Any] = {}
    for name, constant in graph.named_buffers(remove_duplicate=False):
        root.register_buffer(name, constant)
    names = {layer.node: layer.name.replace(".", "_") for layer in quantizable(graph, WEIGHTED | {STEP_LOOP})}
    for node in graph.graph.nodes:
        name = names.get(node.name, "")
        if name and not hasattr(root, name) and not node.kwargs:
            constants = {place: value for place, value in enumerate(node.args) if not _is_node(value)}
            root.add_module(name, _module(node.target, len(node.args), constants))
            arguments = tuple(known[value] for value in node.args if _is_node(value))
            known[node] = result.call_module(name, arguments)
        else:
            known[node] = result.node_copy(node, lambda old: known[old])
    return torch.fx.GraphModule(root, result).eval()


def _is_node(value: object) -> bool:
    import torch

    return isinstance(value, torch.fx.Node)


def _module(target: Any, count: int, constants: dict[int, Any]) -> "torch.nn.Module":
    """A module that calls an operator with ``count`` arguments: ``constants``, the others from the caller."""
    import torch

    class Layer(torch.nn.Module):
        # litert-torch builds the names in the file from these.
        __module__, __qualname__ = MODULE, MODULE_CLASS

        def forward(self, *values: torch.Tensor) -> Any:
            rest = iter(values)
            return target(*(constants[i] if i in constants else next(rest) for i in range(count)))

    return Layer()
