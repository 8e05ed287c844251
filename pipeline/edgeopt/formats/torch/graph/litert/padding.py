"""Padding with values of the tensor itself, without a vector of indices as long as the padded axis.

litert-torch has MIRROR_PAD for images alone, and gathers all other padded axes element by element.
"""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def pad_as_image(editor: GraphEditor, node: "Node") -> bool:
    """Reflect the ends of signals ``[batch, channels, length]`` as those of images of height 1."""
    import torch

    if not _pads(node, "reflect") or editor.rank(node) != 3:
        return False
    aten, before, after = torch.ops.aten, editor.shape(node.args[0]), editor.shape(node)
    assert before is not None and after is not None
    image, padded = (*before[:2], 1, before[2]), (*after[:2], 1, after[2])
    made = editor.insert(node, aten.reshape.default, (node.args[0], list(image)), image)
    made = editor.insert(node, aten.reflection_pad2d.default, (made, [*node.args[1], 0, 0]), padded)
    return editor.replace(node, editor.insert(node, aten.reshape.default, (made, list(after)), node))


def repeat_ends(editor: GraphEditor, node: "Node") -> bool:
    """Replicate the first and last element of each axis by joining copies of them to the tensor."""
    import torch

    shape = editor.shape(node.args[0]) if _pads(node, "replicate") else None
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
                end = editor.insert(node, aten.expand.default, (end, one), tuple(one))
                parts = [*parts, end] if place else [end, *parts]
        sizes[axis] += before + after
        if len(parts) > 1:
            made = editor.insert(node, aten.cat.default, (parts, axis), tuple(sizes))
    return editor.replace(node, made)


def _pads(node: "Node", mode: str) -> bool:
    return operator_name(node) == "pad" and len(node.args) > 2 and node.args[2] == mode
