"""Filling of selected rows through a constant mask: litert-torch would copy with strides, which it cannot."""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def mask_filled_rows(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``index_fill`` with constant indices and value by ``masked_fill``."""
    import torch

    if operator_name(node) != "index_fill" or len(node.args) != 4:
        return False
    x, axis, index, value = node.args
    shape: Any = editor.shape(x)
    if not shape or not isinstance(axis, int) or not editor.is_constant(index) or editor.is_node(value):
        return False
    sizes = [size if at == axis % len(shape) else 1 for at, size in enumerate(shape)]
    mask = torch.zeros(sizes, dtype=torch.bool)
    mask = mask.index_fill(axis, editor.value(index), value=True)
    constant = editor.insert_constant(node, mask, f"{node.name}_rows")
    return editor.replace(
        node, editor.insert(node, torch.ops.aten.masked_fill.Scalar, (x, constant, value), node)
    )
