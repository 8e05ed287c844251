"""Differences, quotients, powers and broadcasts that litert-torch miscompiles, in operators that it supports.

When the converter moves a transposition across ``constant - x`` or ``constant / x``, it swaps the operands,
without an error. A sum and a product have no order.
"""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import BINARY, operator_name

if TYPE_CHECKING:
    from torch.fx import Node

FIRST_RANK = 3
"""Smaller tensors have no layout that the converter would change."""


def commute_constant(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``c - x`` by ``x * -1 + c``, ``c / x`` by ``x ** -1 * c``, and ``1 / x`` by ``x ** -1``."""
    import torch

    name = operator_name(node)
    if editor.rank(node) < FIRST_RANK or (name not in ("rsub", "sub", "div", "reciprocal")) or node.kwargs:
        return False
    aten = torch.ops.aten
    x: Any = node.args[0]
    constant: Any = None
    if name == "rsub" and len(node.args) == 2:
        constant = node.args[1]
    elif name in ("sub", "div") and len(node.args) == 2 and (editor.is_constant(x) or not editor.is_node(x)):
        constant, x = x, node.args[1]
    elif name != "reciprocal":
        return False
    if not editor.is_node(x) or editor.is_constant(x) or not editor.dtype(x).is_floating_point:
        return False
    if name in ("rsub", "sub"):
        made = editor.insert(node, aten.mul.Tensor, (x, -1.0), x)
        return editor.replace(node, editor.insert(node, aten.add.Tensor, (made, constant), node))
    made = editor.insert(node, aten.pow.Tensor_Scalar, (x, -1.0), x)
    if constant is not None:
        made = editor.insert(node, aten.mul.Tensor, (made, constant), node)
    return editor.replace(node, made)


def drop_expansion(editor: GraphEditor, node: "Node") -> bool:
    """Let arithmetic broadcast an expanded operand by itself: its transposed expansion has a wrong shape."""
    if operator_name(node) != "expand" or editor.is_constant(node.args[0]):
        return False
    source = node.args[0]
    readers = [reader for reader in node.users if operator_name(reader) in BINARY]
    changed = False
    for reader in readers:
        others = [other for other in reader.args if other is not node]
        if len(others) == 1 and editor.shape(others[0]) == editor.shape(node) == editor.shape(reader):
            reader.replace_input_with(node, source)
            changed = True
    return changed


def multiply_square(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``x ** 2`` and ``x ** 3`` by products: POW with an integer exponent takes only integers."""
    import torch

    exponent = node.args[1] if operator_name(node) == "pow" and len(node.args) == 2 else None
    x: Any = node.args[0] if node.args else None
    if exponent not in (2, 3) or not editor.is_node(x) or not editor.dtype(x).is_floating_point:
        return False
    made = x
    for _ in range(int(exponent) - 1):
        made = editor.insert(node, torch.ops.aten.mul.Tensor, (made, x), node)
    return editor.replace(node, made)
