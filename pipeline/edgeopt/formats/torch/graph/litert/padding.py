"""Reflection of signals without a vector of indices as long as the padded axis.

litert-torch has MIRROR_PAD for images alone, and gathers all other padded axes element by element.
"""

from typing import TYPE_CHECKING

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.padding import pads

if TYPE_CHECKING:
    from torch.fx import Node


def pad_as_image(editor: GraphEditor, node: "Node") -> bool:
    """Reflect the ends of signals ``[batch, channels, length]`` as those of images of height 1."""
    import torch

    if not pads(node, "reflect") or editor.rank(node) != 3:
        return False
    aten, before, after = torch.ops.aten, editor.shape(node.args[0]), editor.shape(node)
    assert before is not None and after is not None
    image, padded = (*before[:2], 1, before[2]), (*after[:2], 1, after[2])
    made = editor.insert(node, aten.reshape.default, (node.args[0], list(image)), image)
    made = editor.insert(node, aten.reflection_pad2d.default, (made, [*node.args[1], 0, 0]), padded)
    return editor.replace(node, editor.insert(node, aten.reshape.default, (made, list(after)), node))
