"""Rewriting rules for operators that no other format has, and that common operators compute exactly."""

import math
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor, Shape
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node

MOST_DIFFERENCES = 1 << 20
"""Values in the table of all differences of a distance matrix; a larger one is not written out."""


def scan(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``cumprod`` and ``logcumsumexp`` by prefix doubling (Hillis and Steele 1986).

    After step ``k``, each element combines the ``2^k`` elements that end with it: the number of steps is the
    logarithm of the length. Nothing overflows that would not overflow in the operator itself.
    """
    import torch

    combine = {"cumprod": _product, "logcumsumexp": _log_sum}.get(operator_name(node))
    x, shape = node.args[0], editor.shape(node)
    if combine is None or not shape or not editor.is_node(x) or not editor.dtype(node).is_floating_point:
        return False
    aten: Any = torch.ops.aten
    axis = int(node.args[1]) % len(shape)
    value: Any = x
    step = 1
    while step < shape[axis]:
        rest = shape[axis] - step

        def part(start: int, end: int, value: Any = value) -> "Node":
            size = (*shape[:axis], end - start, *shape[axis + 1 :])
            return editor.insert(node, aten.slice.Tensor, (value, axis, start, end), size)

        joined = combine(editor, node, part(step, shape[axis]), part(0, rest))
        value = editor.insert(node, aten.cat.default, ([part(0, step), joined], axis), shape)
        step *= 2
    return editor.replace(node, value)


def _product(editor: GraphEditor, node: "Node", one: "Node", other: "Node") -> "Node":
    import torch

    return editor.insert(node, torch.ops.aten.mul.Tensor, (one, other), one)


def _log_sum(editor: GraphEditor, node: "Node", one: "Node", other: "Node") -> "Node":
    """``log(exp(one) + exp(other))`` as ``larger + log(1 + exp(smaller - larger))``."""
    import torch

    aten: Any = torch.ops.aten
    larger = editor.insert(node, aten.maximum.default, (one, other), one)
    smaller = editor.insert(node, aten.minimum.default, (one, other), one)
    made = editor.insert(node, aten.sub.Tensor, (smaller, larger), one)
    made = editor.insert(node, aten.exp.default, (made,), one)
    made = editor.insert(node, aten.add.Tensor, (made, 1.0), one)
    made = editor.insert(node, aten.log.default, (made,), one)
    return editor.insert(node, aten.add.Tensor, (larger, made), one)


def extreme_of_two(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``fmax`` and ``fmin``, which differ from ``maximum`` and ``minimum`` for NaN alone."""
    import torch

    aten: Any = torch.ops.aten
    target = {"fmax": aten.maximum.default, "fmin": aten.minimum.default}.get(operator_name(node))
    if target is None:
        return False
    return editor.replace(node, editor.insert(node, target, node.args, node))


def distances(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``cdist`` for the 1-, 2- and maximum norm by a reduction of all differences."""
    import torch

    if operator_name(node) not in ("cdist", "_cdist_forward"):
        return False
    one, other, norm = node.args[0], node.args[1], float(node.args[2]) if len(node.args) > 2 else 2.0
    shape, width = editor.shape(node), (editor.shape(one) or (0,))[-1]
    if not shape or norm not in (1.0, 2.0, math.inf) or math.prod(shape) * width > MOST_DIFFERENCES:
        return False
    aten: Any = torch.ops.aten

    def beside(value: Any, axis: int) -> "Node":
        before: Shape = editor.shape(value) or ()
        size = list(before)
        size.insert(len(before) + axis, 1)
        return editor.insert(node, aten.reshape.default, (value, size), tuple(size))

    wide = (*shape, width)
    made = editor.insert(node, aten.sub.Tensor, (beside(one, -1), beside(other, -2)), wide)
    if norm == 2.0:
        made = editor.insert(node, aten.mul.Tensor, (made, made), wide)
        made = editor.insert(node, aten.sum.dim_IntList, (made, [-1]), node)
        return editor.replace(node, editor.insert(node, aten.sqrt.default, (made,), node))
    made = editor.insert(node, aten.abs.default, (made,), wide)
    target = aten.sum.dim_IntList if norm == 1.0 else aten.amax.default
    return editor.replace(node, editor.insert(node, target, (made, [-1]), node))
