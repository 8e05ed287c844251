"""Activations with a ceiling, such as ReLU6, for qnnpack.

qnnpack's kernel of clamp, ReLU6 and hardtanh returns its values in another order when the input is in
channels-last order, and its convolutions write that order. An int8 layer needs no such kernel: its output
saturates where its range ends, and the calibrated range of the activation ends at the ceiling.
"""

import operator
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph import to_modules as torch_to_modules

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def replace(graph: "GraphModule", exempt: Collection[str]) -> None:
    """Replace the activation behind an int8 layer or sum by a ReLU, which FX fuses into it.

    Others become operators that FX does not quantize, so that they compute in float.

    Args:
        graph: the graph to be prepared, with ``torch.nn`` modules; changed in place. The range of a replaced
            activation must end at its ceiling or below.
        exempt: names of the nodes that stay in float; their activations stay as they are.
    """
    import torch
    import torch.nn.functional as F

    modules = dict(graph.named_modules())
    aten = torch.ops.aten
    in_float = {
        F.relu6: aten.relu6.default,
        F.hardtanh: aten.hardtanh.default,
        torch.clamp: aten.clamp.default,
    }
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in in_float:
            continue
        source = node.args[0]
        if str(source.target).removeprefix(torch_to_modules.PREFIX) in exempt or source.name in exempt:
            continue
        if _lowest(node) == 0 and len(source.users) == 1 and _fuses(source, modules):
            node.target, node.args, node.kwargs = F.relu, (source,), {}
        else:
            node.target = in_float[node.target]
    graph.recompile()


def _lowest(node: "Node") -> Any:
    """The lower bound of an activation; None if it has none."""
    import torch.nn.functional as F

    if node.target is F.relu6:
        return 0
    low = node.args[1] if len(node.args) > 1 else None
    return -1 if node.target is F.hardtanh and low is None else low


def _fuses(source: "Node", modules: dict[str, Any]) -> bool:
    """Whether qnnpack has a kernel of this operator with a ReLU."""
    import torch

    if source.op == "call_module":
        kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
        return isinstance(modules[str(source.target)], kinds)
    values = [arg for arg in source.args if isinstance(arg, torch.fx.Node) and arg.op != "get_attr"]
    return source.target in (operator.add, operator.mul) and len(values) == 2
