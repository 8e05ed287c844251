"""Rewriting of a graph in the plain form into operators of ExecuTorch, as far as possible of XNNPACK."""

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.files.specs import zeros
from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.formats.torch.graph.padding import repeat_ends
from edgeopt.formats.torch.graph.volumes import as_images
from edgeopt.formats.torch.lab.engine import one_thread
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def for_executorch(graph: "GraphModule", inputs: Sequence[TensorSpec]) -> "GraphModule":
    """The same graph with other operators, at batch 1; the argument itself if nothing changes."""
    import torch

    if any(operator_name(node) in RULES for node in graph.graph.nodes):
        with torch.no_grad(), one_thread():
            editor = GraphEditor(graph, zeros(inputs))
            editor.infer_shapes()
            chosen = [node for node in editor.graph.nodes if operator_name(node) in RULES]
            if sum(RULES[operator_name(node)](editor, node) for node in chosen):
                editor.remove_unused()
                graph = editor.finish([spec.name for spec in inputs])
    return as_images(graph)


def sort_by_topk(editor: GraphEditor, node: "Node") -> bool:
    """Sort by selecting all values: ExecuTorch has ``topk``, but no ``sort``."""
    import torch

    declared = node.target._schema.arguments
    given: dict[str, Any] = {each.name: each.default_value for each in declared}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    shape = editor.shape(given["self"])
    if not shape or given.get("stable"):
        return False
    axis = given["dim"] % len(shape)
    args = (given["self"], shape[axis], axis, given["descending"])
    made = editor.insert(node, torch.ops.aten.topk.default, args, node)
    if operator_name(node) == "argsort":
        made = editor.insert(node, operator.getitem, (made, 1), node)
    return editor.replace(node, made)


RULES: "dict[str, Callable[[GraphEditor, Node], bool]]" = {
    "pad": repeat_ends,
    "sort": sort_by_topk,
    "argsort": sort_by_topk,
}
"""By operator; each returns whether it changed the graph."""
