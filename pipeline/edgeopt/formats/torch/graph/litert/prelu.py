"""PReLU without a second copy of the layer before it.

litert-torch computes ``relu(x) - weight * relu(-x)``, and its converter moves the negation into the weights
of the layer: the file then holds, and the runtime computes, every such layer twice.
"""

from typing import TYPE_CHECKING

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def choose_larger(editor: GraphEditor, node: "Node") -> bool:
    """Replace PReLU by a leaky ReLU, or by the larger of ``x`` and its product if no slope exceeds 1."""
    import torch

    if operator_name(node) not in ("prelu", "_prelu_kernel") or not editor.is_constant(node.args[1]):
        return False
    aten, x = torch.ops.aten, node.args[0]
    slopes = editor.value(node.args[1]).flatten()
    if bool((slopes == slopes[0]).all()):
        made = editor.insert(node, aten.leaky_relu.default, (x, float(slopes[0])), node)
        return editor.replace(node, made)
    shape = (-1, *[1] * (editor.rank(x) - 2))
    factor = editor.insert_constant(node, slopes.reshape(shape), str(node.args[1].target))
    if bool((slopes <= 1).all()) or bool((slopes >= 1).all()):
        chosen = aten.maximum.default if bool((slopes <= 1).all()) else aten.minimum.default
        scaled = editor.insert(node, aten.mul.Tensor, (x, factor), node)
        return editor.replace(node, editor.insert(node, chosen, (x, scaled), node))
    below = editor.insert(node, aten.clamp_max.default, (x, 0.0), node)
    scaled = editor.insert(node, aten.mul.Tensor, (below, factor), node)
    above = editor.insert(node, aten.clamp_min.default, (x, 0.0), node)
    return editor.replace(node, editor.insert(node, aten.add.Tensor, (above, scaled), node))
