"""Rules that move permutes towards those that undo them, and remove both.

A channels-last framework puts a permute before and after each convolution. Moved behind everything
that works element by element, the one after a convolution meets the one before the next.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.torch.graph.graph_editor import Draft
from edgeopt.formats.torch.graph.operators import BINARY, SOFTMAX, UNARY, operator_name

if TYPE_CHECKING:
    from torch.fx import Node


def join_permutes(draft: Draft, node: "Node") -> bool:
    """Two permutes in a row become one, or none; one that moves only axes of size 1 becomes a reshape."""
    import torch

    if operator_name(node) != "permute":
        return False
    source = node.args[0]
    shape = draft.shape(source)
    if shape is None:
        return False
    order = [int(axis) % len(shape) for axis in node.args[1]]
    if operator_name(source) == "permute":
        inner = [int(axis) % len(shape) for axis in source.args[1]]
        joined = [inner[axis] for axis in order]
        if joined == sorted(joined):
            return draft.replace(node, source.args[0])
        return draft.replace(node, draft.new(node, node.target, (source.args[0], joined), node))
    kept = [axis for axis in order if shape[axis] != 1]
    if kept == sorted(kept):
        # Only axes of size 1 move: nothing moves in memory.
        sizes = [shape[axis] for axis in order]
        return draft.replace(node, draft.new(node, torch.ops.aten.reshape.default, (source, sizes), node))
    return False


def join_reshapes(draft: Draft, node: "Node") -> bool:
    """Two reshapes in a row become one."""
    source: Any = node.args[0] if node.args else None
    if operator_name(node) != "reshape" or operator_name(source) != "reshape":
        return False
    sizes = list(draft.shape(node) or ())
    return draft.replace(node, draft.new(node, node.target, (source.args[0], sizes), node))


def sink_permute(draft: Draft, node: "Node") -> bool:
    """Move a permute behind the operator that reads it."""
    name = operator_name(node)
    if name in BINARY:
        return _sink_binary(draft, node)
    if name == "cat":
        return _sink_cat(draft, node)
    if not (name in UNARY or name in SOFTMAX or name in ("mean", "constant_pad_nd", "slice")):
        return False
    found = _permuted(draft, node.args[0])
    if found is None:
        return False
    source, order = found
    if name == "mean":
        return _sink_mean(draft, node, source, order)
    args = [source, *node.args[1:]]
    if name in SOFTMAX:
        args[1] = order[int(args[1]) % len(order)]
    elif name == "slice":
        axis = order[int(args[1] if len(args) > 1 else 0) % len(order)]
        args[1:2] = [axis]
    elif name == "constant_pad_nd":
        args[1] = _turned_padding(list(args[1]), order)
    return _behind(draft, node, tuple(args), order)


def _permuted(draft: Draft, value: Any) -> "tuple[Node, list[int]] | None":
    """Source and order of a permute, where ``value`` is one."""
    if operator_name(value) != "permute":
        return None
    source = value.args[0]
    rank = draft.rank(source)
    return source, [int(axis) % rank for axis in value.args[1]]


def _behind(draft: Draft, node: "Node", args: tuple[Any, ...], order: list[int]) -> bool:
    """Replace ``node`` by ``permute(node(args), order)``."""
    import torch

    shape = draft.shape(node) or ()
    inner: list[int] = [0] * len(order)
    for axis, old in enumerate(order):
        inner[old] = shape[axis]
    new = draft.new(node, node.target, args, tuple(inner))
    new.kwargs = node.kwargs
    return draft.replace(node, draft.new(node, torch.ops.aten.permute.default, (new, order), node))


def _turned_padding(amounts: list[int], order: list[int]) -> list[int]:
    """Padding, given from the last axis on, for the axes as they were before the permute."""
    rank = len(order)
    amounts = amounts + [0] * (2 * rank - len(amounts))
    moved = {order[rank - 1 - i]: amounts[2 * i : 2 * i + 2] for i in range(rank)}
    turned = [amount for i in range(rank) for amount in moved[rank - 1 - i]]
    while len(turned) > 2 and turned[-2:] == [0, 0]:
        turned = turned[:-2]
    return turned


def _sink_mean(draft: Draft, node: "Node", source: "Node", order: list[int]) -> bool:
    if len(node.args) < 2 or not node.args[1]:
        return False
    rank = len(order)
    axes = [int(axis) % rank for axis in node.args[1]]
    moved = sorted(order[axis] for axis in axes)
    if len(node.args) > 2 and node.args[2]:
        return _behind(draft, node, (source, moved, True), order)
    rest = [order[axis] for axis in range(rank) if axis not in axes]
    return _behind(draft, node, (source, moved), [sorted(rest).index(axis) for axis in rest])


def _sink_binary(draft: Draft, node: "Node") -> bool:
    found = [_permuted(draft, arg) for arg in node.args[:2]]
    orders = [pair[1] for pair in found if pair is not None]
    if not orders or any(order != orders[0] for order in orders) or draft.rank(node) != len(orders[0]):
        return False
    args: list[Any] = []
    for arg, pair in zip(node.args[:2], found, strict=True):
        if pair is not None:
            args.append(pair[0])
        elif draft.is_value(arg):
            turned = _turned(draft, node, arg, orders[0])
            if turned is None:
                return False
            args.append(turned)
        else:
            args.append(arg)
    return _behind(draft, node, tuple(args), orders[0])


def _turned(draft: Draft, node: "Node", value: "Node", order: list[int]) -> "Node | None":
    """``value`` with its axes as they were before the permute, where that costs nothing."""
    import torch

    rank = len(order)
    inverse = [order.index(axis) for axis in range(rank)]
    shape = draft.shape(value)
    if shape is None or len(shape) > rank:
        return None
    full = (1,) * (rank - len(shape)) + shape
    if draft.is_constant(value):
        if all(size == 1 for size in shape):
            return value
        return draft.store(node, draft.value(value).reshape(full).permute(inverse), str(value.target))
    if sum(size != 1 for size in full) > 1:
        return None
    sizes = [full[axis] for axis in inverse]
    return draft.new(node, torch.ops.aten.reshape.default, (value, sizes), tuple(sizes))


def _sink_cat(draft: Draft, node: "Node") -> bool:
    found = [pair for pair in (_permuted(draft, arg) for arg in node.args[0]) if pair is not None]
    if not found or len(found) != len(node.args[0]) or any(pair[1] != found[0][1] for pair in found):
        return False
    order = found[0][1]
    axis = order[int(node.args[1] if len(node.args) > 1 else 0) % len(order)]
    return _behind(draft, node, ([pair[0] for pair in found], axis), order)


def permute_into_linear(draft: Draft, node: "Node") -> bool:
    """``linear(flatten(permute(x)))``: reorder the columns of the weights instead of the data."""
    import torch

    if operator_name(node) != "linear" or not draft.is_constant(node.args[1]) or node.kwargs:
        return False
    flat = node.args[0]
    if operator_name(flat) != "reshape":
        return False
    found = _permuted(draft, flat.args[0])
    shape = draft.shape(flat.args[0])
    if found is None or shape is None:
        return False
    source, order = found
    sizes = draft.shape(flat) or ()
    if order[0] != 0 or sizes != (shape[0], int(np.prod(shape[1:]))):
        return False
    weight = draft.value(node.args[1])
    inverse = [order.index(axis) for axis in range(len(order))]
    turned = weight.reshape(weight.shape[0], *shape[1:]).permute(inverse).reshape(weight.shape)
    straight = draft.new(node, torch.ops.aten.reshape.default, (source, list(sizes)), sizes)
    stored = draft.store(node, turned, str(node.args[1].target))
    return draft.replace(node, draft.new(node, node.target, (straight, stored, node.args[2]), node))
