"""Rewriting rules that recognize activations which a framework writes as several operators."""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def recognize_prelu(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``relu(x) + a * relu(-x)``, as Keras writes it, by PReLU, or by leaky ReLU of the same slope.

    Slopes that differ inside a channel have no such operator.
    """
    import torch

    if operator_name(node) != "add" or len(node.args) != 2 or node.kwargs:
        return False
    aten: Any = torch.ops.aten
    for positive, negative in (node.args, node.args[::-1]):
        found = _negative_part(editor, negative)
        if found is None or operator_name(positive) != "relu" or positive.args[0] is not found[0]:
            continue
        x, factor = found
        slopes = -editor.value(factor)
        if slopes.numel() == 1:
            return editor.replace(
                node, editor.insert(node, aten.leaky_relu.default, (x, float(slopes)), node)
            )
        if _is_per_channel(slopes, editor.shape(x) or ()):
            weight = editor.insert_constant(node, slopes.flatten(), str(factor.target))
            return editor.replace(node, editor.insert(node, aten.prelu.default, (x, weight), node))
    return False


def _negative_part(editor: GraphEditor, node: Any) -> "tuple[Node, Node] | None":
    """``x`` and the constant ``a`` of a node that computes ``a * relu(-x)``."""
    if operator_name(node) != "mul":
        return None
    for factor, clipped in (node.args, node.args[::-1]):
        if editor.is_constant(factor) and operator_name(clipped) == "relu":
            negated = clipped.args[0]
            if operator_name(negated) == "neg" and editor.is_node(negated.args[0]):
                return negated.args[0], factor
    return None


def _is_per_channel(slopes: Any, shape: tuple[int, ...]) -> bool:
    """Whether slopes, broadcast to ``shape``, differ along axis 1 only."""
    padded = (*[1] * (len(shape) - slopes.dim()), *slopes.shape)
    return len(padded) > 1 and padded[1] == shape[1] == slopes.numel()
