"""Padding with values of the tensor itself, for runtimes that gather it element by element, or cannot."""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def repeat_ends(editor: GraphEditor, node: "Node") -> bool:
    """Replicate the first and last element of each axis by joining copies of them to the tensor."""
    import torch

    shape = editor.shape(node.args[0]) if pads(node, "replicate") else None
    if not shape or min(node.args[1]) < 0:
        return False
    aten, made, sizes = torch.ops.aten, node.args[0], list(shape)
    for at, (before, after) in enumerate(zip(node.args[1][::2], node.args[1][1::2], strict=True)):
        axis = len(sizes) - 1 - at
        parts: list[Any] = [made]
        for count, place in ((before, 0), (after, sizes[axis] - 1)):
            if count:
                one = [1 if each == axis else size for each, size in enumerate(sizes)]
                end = editor.insert(node, aten.slice.Tensor, (made, axis, place, place + 1), tuple(one))
                one[axis] = count
                if count > 1:
                    end = editor.insert(node, aten.expand.default, (end, one), tuple(one))
                parts = [*parts, end] if place else [end, *parts]
        sizes[axis] += before + after
        if len(parts) > 1:
            made = editor.insert(node, aten.cat.default, (parts, axis), tuple(sizes))
    return editor.replace(node, made)


def pads(node: "Node", mode: str) -> bool:
    """Whether an operator pads in a mode, such as ``reflect``."""
    return operator_name(node) == "pad" and len(node.args) > 2 and node.args[2] == mode
