"""Recurrent layers with int8 weights in a graph that is otherwise quantized statically, for TorchScript."""

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.formats.torch.graph.to_modules import PREFIX, RECURRENT

if TYPE_CHECKING:
    from torch.fx import GraphModule

NOTE = "recurrent layers have int8 weights; their inputs and states are quantized at run time"


def nodes(graph: "GraphModule") -> dict[str, Any]:
    """The LSTM and GRU operators that `to_int8` can replace, by name."""
    return {
        str(node.name): node
        for node in graph.graph.nodes
        if torch_to_modules.recurrent_module(node, graph) is not None
    }


def to_int8(graph: "GraphModule", float_graph: "GraphModule", exempt: Container[str]) -> None:
    """Replace the LSTM and GRU operators of a graph, in place, by PyTorch's dynamically quantized modules.

    Args:
        graph: the result of ``convert_fx``, which may have renamed the nodes of ``float_graph``.
        float_graph: the graph that it was made from.
        exempt: names of nodes in ``float_graph`` that stay as they are.
    """
    import torch
    from torch.ao import quantization

    for name, node in zip(nodes(float_graph), nodes(graph).values(), strict=True):
        if name in exempt:
            continue
        layer: Any = torch_to_modules.recurrent_module(node, graph)
        layer.qconfig = quantization.default_dynamic_qconfig
        kind = getattr(torch.ao.nn.quantized.dynamic, RECURRENT[operator_name(node)])
        graph.add_submodule(f"{PREFIX}{name}", kind.from_float(layer))
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(f"{PREFIX}{name}", torch_to_modules.module_inputs(node, node.args))
        for user in [user for user in node.users if torch_to_modules.is_final_state(user)]:
            with graph.graph.inserting_before(user):
                user.replace_all_uses_with(torch_to_modules.final_state(graph.graph, call, user.args[1]))
            graph.graph.erase_node(user)
        node.replace_all_uses_with(call)
    graph.graph.eliminate_dead_code()
    graph.recompile()
