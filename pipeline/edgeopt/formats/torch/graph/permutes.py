"""Rewriting rules that move permutes next to their inverses, and remove both.

A channels-last framework inserts a permute before and after each convolution. Moved behind all elementwise
operators, the permute after one convolution becomes adjacent to the permute before the next.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import BINARY, SOFTMAX, UNARY, operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def join_permutes(editor: GraphEditor, node: "Node") -> bool:
    """Merge or cancel consecutive permutes; replace one that only moves axes of size 1 by a reshape."""
    import torch

    if operator_name(node) != "permute":
        return False
    source = node.args[0]
    shape = editor.shape(source)
    if shape is None:
        return False
    order = [int(axis) % len(shape) for axis in node.args[1]]
    if operator_name(source) == "permute":
        inner = [int(axis) % len(shape) for axis in source.args[1]]
        joined = [inner[axis] for axis in order]
        if joined == sorted(joined):
            return editor.replace(node, source.args[0])
        return editor.replace(node, editor.insert(node, node.target, (source.args[0], joined), node))
    larger = [axis for axis in order if shape[axis] != 1]
    if larger == sorted(larger):
        # The order in memory stays the same, and a reshape is free in every runtime.
        sizes = [shape[axis] for axis in order]
        return editor.replace(
            node, editor.insert(node, torch.ops.aten.reshape.default, (source, sizes), node)
        )
    return False


def join_reshapes(editor: GraphEditor, node: "Node") -> bool:
    """Merge consecutive reshapes."""
    source: Any = node.args[0] if node.args else None
    if operator_name(node) != "reshape" or operator_name(source) != "reshape":
        return False
    sizes = list(editor.shape(node) or ())
    return editor.replace(node, editor.insert(node, node.target, (source.args[0], sizes), node))


def sink_permute(editor: GraphEditor, node: "Node") -> bool:
    """Move a permute behind the operator that reads it.

    Downwards only: rules in both directions would undo each other.
    """
    name = operator_name(node)
    if name in BINARY:
        return _sink_binary(editor, node)
    if name == "cat":
        return _sink_cat(editor, node)
    if not (name in UNARY or name in SOFTMAX or name in ("mean", "constant_pad_nd", "slice")):
        return False
    permuted = _permuted(editor, node.args[0])
    if permuted is None:
        return False
    source, order = permuted
    if name == "mean":
        return _sink_mean(editor, node, source, order)
    # Output axis i of the permute is input axis order[i]: arguments that name an axis are mapped back.
    args = [source, *node.args[1:]]
    if name in SOFTMAX:
        args[1] = order[int(args[1]) % len(order)]
    elif name == "slice":
        axis = order[int(args[1] if len(args) > 1 else 0) % len(order)]
        args[1:2] = [axis]
    elif name == "constant_pad_nd":
        args[1] = _unpermuted_padding(list(args[1]), order)
    return _behind(editor, node, tuple(args), order)


def _permuted(editor: GraphEditor, value: Any) -> "tuple[Node, list[int]] | None":
    """Source and order of a permute; None for other values."""
    if operator_name(value) != "permute":
        return None
    source = value.args[0]
    rank = editor.rank(source)
    return source, [int(axis) % rank for axis in value.args[1]]


def _behind(editor: GraphEditor, node: "Node", args: tuple[Any, ...], order: list[int]) -> bool:
    """Replace ``node`` by ``permute(node(args), order)``."""
    import torch

    shape = editor.shape(node) or ()
    inner: list[int] = [0] * len(order)
    for axis, old in enumerate(order):
        inner[old] = shape[axis]
    new = editor.insert(node, node.target, args, tuple(inner))
    new.kwargs = node.kwargs
    return editor.replace(node, editor.insert(node, torch.ops.aten.permute.default, (new, order), node))


def _unpermuted_padding(amounts: list[int], order: list[int]) -> list[int]:
    """Padding amounts, last axis first, in the order of the axes before the permute."""
    rank = len(order)
    amounts = amounts + [0] * (2 * rank - len(amounts))
    by_axis = {order[rank - 1 - i]: amounts[2 * i : 2 * i + 2] for i in range(rank)}
    unpermuted = [amount for i in range(rank) for amount in by_axis[rank - 1 - i]]
    # The short form has no zeros for leading axes.
    while len(unpermuted) > 2 and unpermuted[-2:] == [0, 0]:
        unpermuted = unpermuted[:-2]
    return unpermuted


def _sink_mean(editor: GraphEditor, node: "Node", source: "Node", order: list[int]) -> bool:
    """Move a permute behind a mean."""
    if len(node.args) < 2 or not node.args[1]:
        return False
    rank = len(order)
    axes = [int(axis) % rank for axis in node.args[1]]
    moved = sorted(order[axis] for axis in axes)
    if len(node.args) > 2 and node.args[2]:
        return _behind(editor, node, (source, moved, True), order)
    # Without keepdim the reduced axes disappear: the remaining ones are renumbered.
    rest = [order[axis] for axis in range(rank) if axis not in axes]
    return _behind(editor, node, (source, moved), [sorted(rest).index(axis) for axis in rest])


def _sink_binary(editor: GraphEditor, node: "Node") -> bool:
    """Move the permutes of one or both operands behind a binary operator."""
    permuted = [_permuted(editor, arg) for arg in node.args[:2]]
    orders = [pair[1] for pair in permuted if pair is not None]
    # An operand of higher rank would shift the axes in broadcasting.
    if not orders or any(order != orders[0] for order in orders) or editor.rank(node) != len(orders[0]):
        return False
    args: list[Any] = []
    for arg, pair in zip(node.args[:2], permuted, strict=True):
        if pair is not None:
            args.append(pair[0])
        elif editor.is_node(arg):
            unpermuted = _unpermuted(editor, node, arg, orders[0])
            if unpermuted is None:
                return False
            args.append(unpermuted)
        else:
            args.append(arg)
    return _behind(editor, node, tuple(args), orders[0])


def _unpermuted(editor: GraphEditor, node: "Node", value: "Node", order: list[int]) -> "Node | None":
    """``value`` with the inverse permute applied, if that is free at run time; otherwise None."""
    import torch

    rank = len(order)
    inverse = [order.index(axis) for axis in range(rank)]
    shape = editor.shape(value)
    if shape is None or len(shape) > rank:
        return None
    full = (1,) * (rank - len(shape)) + shape
    if editor.is_constant(value):
        if all(size == 1 for size in shape):
            return value
        return editor.insert_constant(
            node, editor.value(value).reshape(full).permute(inverse), str(value.target)
        )
    # With a single axis larger than 1 the permute is a reshape; any other would move data at run time.
    if sum(size != 1 for size in full) > 1:
        return None
    sizes = [full[axis] for axis in inverse]
    return editor.insert(node, torch.ops.aten.reshape.default, (value, sizes), tuple(sizes))


def _sink_cat(editor: GraphEditor, node: "Node") -> bool:
    """Move a permute common to all operands behind a concatenation."""
    permuted = [pair for pair in (_permuted(editor, arg) for arg in node.args[0]) if pair is not None]
    # With any other operand, that one would need a permute of its own: nothing would be saved.
    if (
        not permuted
        or len(permuted) != len(node.args[0])
        or any(pair[1] != permuted[0][1] for pair in permuted)
    ):
        return False
    order = permuted[0][1]
    axis = order[int(node.args[1] if len(node.args) > 1 else 0) % len(order)]
    return _behind(editor, node, ([pair[0] for pair in permuted], axis), order)


def permute_into_linear(editor: GraphEditor, node: "Node") -> bool:
    """In ``linear(flatten(permute(x)))``, permute the columns of the weight instead of the data.

    This removes the last permute of a network, between its convolutions and its dense head.
    """
    import torch

    if operator_name(node) != "linear" or not editor.is_constant(node.args[1]) or node.kwargs:
        return False
    flat = node.args[0]
    if operator_name(flat) != "reshape":
        return False
    permuted = _permuted(editor, flat.args[0])
    shape = editor.shape(flat.args[0])
    if permuted is None or shape is None:
        return False
    source, order = permuted
    sizes = editor.shape(flat) or ()
    # Only if the batch axis stays in front and all others are flattened is this a reordering of features.
    if order[0] != 0 or sizes != (shape[0], int(np.prod(shape[1:]))):
        return False
    weight = editor.value(node.args[1])
    inverse = [order.index(axis) for axis in range(len(order))]
    reordered = weight.reshape(weight.shape[0], *shape[1:]).permute(inverse).reshape(weight.shape)
    flattened = editor.insert(node, torch.ops.aten.reshape.default, (source, list(sizes)), sizes)
    constant = editor.insert_constant(node, reordered, str(node.args[1].target))
    return editor.replace(node, editor.insert(node, node.target, (flattened, constant, node.args[2]), node))
