"""Rewriting rules to equivalent operators that more converters and runtimes know.

A PReLU that a framework writes as several operators becomes one; others are composed of common ones.
"""

import math
import operator
from collections.abc import Callable
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


def limit(editor: GraphEditor, node: "Node") -> bool:
    """Drop infinite limits of ``clamp``, for which ONNX has no number."""
    if (
        operator_name(node) != "clamp"
        or getattr(node.target, "_overloadname", "") != "default"
        or node.kwargs
    ):
        return False
    x, *limits = node.args
    finite = [value if isinstance(value, int | float) and math.isfinite(value) else None for value in limits]
    if finite == limits:
        return False
    if not any(value is not None for value in finite):
        return editor.replace(node, x)
    node.args = (x, *finite)
    return True


def compose(editor: GraphEditor, node: "Node") -> bool:
    """Replace operators of one result that few converters know, such as ``hypot``, by others."""
    import torch

    aten: Any = torch.ops.aten
    name, args = operator_name(node), node.args
    if name == "erfc":
        made = editor.insert(node, aten.erf.default, args, node)
        return editor.replace(node, editor.insert(node, aten.rsub.Scalar, (made, 1.0), node))
    if name == "hypot":
        squares = [
            editor.insert(node, aten.mul.Tensor, (each, each), editor.shape(each) or ()) for each in args
        ]
        total = editor.insert(node, aten.add.Tensor, tuple(squares), node)
        return editor.replace(node, editor.insert(node, aten.sqrt.default, (total,), node))
    return False


def first_result(editor: GraphEditor, node: "Node") -> bool:
    """Replace operators of several results of which only the first is read."""
    source: Any = node.args[0] if operator_name(node) == "getitem" else None
    name = operator_name(source)
    if name not in RESULTS or node.args[1] != 0 or len(source.users) > 1 or source.kwargs:
        return False
    made = RESULTS[name](editor, node, source)
    return made is not None and editor.replace(node, made)


def _pooled(editor: GraphEditor, node: "Node", source: "Node") -> "Node | None":
    """Adaptive pooling to a divisor of each size, as pooling with one window."""
    import torch

    before, after = editor.shape(source.args[0]), editor.shape(node)
    rank = int(operator_name(source)[-2])
    if before is None or after is None or len(before) != rank + 2:
        return None
    sizes = list(zip(before[2:], after[2:], strict=True))
    if any(old % new for old, new in sizes):
        return None
    window = [old // new for old, new in sizes]
    target = getattr(torch.ops.aten, f"max_pool{rank}d").default
    return editor.insert(node, target, (source.args[0], window, window), node)


def _ranked(editor: GraphEditor, node: "Node", source: "Node") -> "Node | None":
    """``median`` and ``kthvalue`` along an axis, as an element of the sorted values."""
    import torch

    aten: Any = torch.ops.aten
    shape = editor.shape(source.args[0])
    if not shape:
        return None
    given = list(source.args[1:])
    place = int(given.pop(0)) - 1 if operator_name(source) == "kthvalue" else None
    axis = (given[0] if given else -1) % len(shape)
    place = (shape[axis] - 1) // 2 if place is None else place
    both = editor.insert(node, aten.sort.default, (source.args[0], axis), shape)
    values = editor.insert(node, operator.getitem, (both, 0), shape)
    if len(given) > 1 and given[1]:
        return editor.insert(node, aten.slice.Tensor, (values, axis, place, place + 1), node)
    return editor.insert(node, aten.select.int, (values, axis, place), node)


def _summed(editor: GraphEditor, node: "Node", source: "Node") -> "Node | None":
    """Bags of one size, as an embedding and its sum, mean or maximum."""
    import torch

    aten: Any = torch.ops.aten
    defaults: list[Any] = [None, None, None, False, 0, False, None, False, None]
    given: list[Any] = [*source.args, *defaults[len(source.args) :]]
    weight, ids, offsets, _, mode, _, factors, includes_last, padding = given
    count, width = editor.shape(ids), editor.shape(weight)
    if padding is not None or includes_last or not count or not width or not editor.is_constant(offsets):
        return None
    starts = editor.value(offsets).tolist()
    size, rest = divmod(count[0], len(starts)) if starts else (0, 1)
    if rest or not size or starts != list(range(0, count[0], size)):
        return None
    shape = (len(starts), size)
    made = editor.insert(node, aten.reshape.default, (ids, list(shape)), shape)
    made = editor.insert(node, aten.embedding.default, (weight, made), (*shape, width[1]))
    if factors is not None:
        factors = editor.insert(node, aten.reshape.default, (factors, [*shape, 1]), (*shape, 1))
        made = editor.insert(node, aten.mul.Tensor, (made, factors), (*shape, width[1]))
    target = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default)[mode]
    return editor.insert(node, target, (made, [1]), node)


RESULTS: "dict[str, Callable[[GraphEditor, Node, Node], Node | None]]" = {
    **dict.fromkeys((f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)), _pooled),
    **dict.fromkeys(("median", "kthvalue"), _ranked),
    "embedding_bag": _summed,
}
"""Operators of several results, and what makes the first."""
