"""Resizing with coordinates that TFLite's operators do not have, as selections of rows or matrix products.

litert-torch writes RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR with the coordinates of their sizes. The first
is right for integer factors only, the second unless the coordinates follow a scale factor that the sizes
round. Rows and matrices are read off the operator itself, so that they are exact.
"""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor, Shape
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

NEAREST = frozenset({"upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"})
SMOOTHED = frozenset({"_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"})
"""Operators with antialiasing, which litert-torch does not know."""


def select_nearest(editor: GraphEditor, node: "Node") -> bool:
    """Replace nearest resizing by a selection of rows along each axis, unless every factor is an integer."""
    import torch

    if operator_name(node) not in NEAREST:
        return False
    before, after = editor.shape(node.args[0]), editor.shape(node)
    if before is None or after is None or all(new % old == 0 for old, new in zip(before, after, strict=True)):
        return False
    aten, made = torch.ops.aten, node.args[0]
    shape = list(before)
    for axis in range(2, len(before)):
        rows = _along(node, before, axis, torch.arange(before[axis], dtype=torch.double)).long()
        shape[axis] = after[axis]
        step = int(rows[1]) if len(rows) > 1 else 1
        if torch.equal(rows, torch.arange(before[axis])):
            continue
        if step > 1 and torch.equal(rows, torch.arange(0, step * len(rows), step)):
            args: tuple[Any, ...] = (made, axis, 0, before[axis], step)
            made = editor.insert(node, aten.slice.Tensor, args, tuple(shape))
            if len(range(0, before[axis], step)) > len(rows):
                args = (made, axis, 0, len(rows))
                made = editor.insert(node, aten.slice.Tensor, args, tuple(shape))
        else:
            index = editor.insert_constant(node, rows, f"{node.name}_rows")
            made = editor.insert(node, aten.index_select.default, (made, axis, index), tuple(shape))
    return made is not node.args[0] and editor.replace(node, made)


def multiply_resized(editor: GraphEditor, node: "Node") -> bool:
    """Replace resizing by a product with a matrix along each axis, where TFLite's operator differs."""
    import torch

    name = operator_name(node)
    before, after = editor.shape(node.args[0]), editor.shape(node)
    if name not in SMOOTHED | {"upsample_bilinear2d"} or before is None or after is None:
        return False
    bases = [torch.eye(before[axis], dtype=torch.double) for axis in (2, 3)]
    matrices = [_along(node, before, axis, basis).t() for axis, basis in zip((2, 3), bases, strict=True)]
    if name not in SMOOTHED:
        sized = [
            torch.nn.functional.interpolate(
                basis[:, None, :], size=size, mode="linear", align_corners=bool(node.args[2])
            )[:, 0].t()
            for basis, size in zip(bases, after[2:], strict=True)
        ]
        if all(torch.allclose(one, other, atol=1e-5) for one, other in zip(matrices, sized, strict=True)):
            return False
    made, shape = node.args[0], before
    for matrix in (matrices[1], matrices[0]):
        constant = editor.insert_constant(node, matrix.float(), f"{node.name}_matrix")
        shape = (*shape[:3], matrix.shape[0])
        made = editor.insert(node, torch.ops.aten.linear.default, (made, constant, None), shape)
        # The second product is along the height, and the second permutation restores the order.
        shape = (*shape[:2], shape[3], shape[2])
        made = editor.insert(node, torch.ops.aten.permute.default, (made, [0, 1, 3, 2]), shape)
    return editor.replace(node, made)


def _along(node: "Node", before: Shape, axis: int, values: "torch.Tensor") -> "torch.Tensor":
    """The operator's result for values along one axis, ``[..., size]``, that are equal along all others."""
    rank = len(before)
    columns = values.reshape(-1, 1, *[before[at] if at == axis else 1 for at in range(2, rank)])
    image = columns.expand(columns.shape[0], 1, *before[2:]).contiguous()
    result: torch.Tensor = node.target(image, *node.args[1:], **node.kwargs)
    for at in reversed(range(1, rank)):
        if at != axis:
            result = result.select(at, 0)
    return result.reshape(*values.shape[:-1], -1)
