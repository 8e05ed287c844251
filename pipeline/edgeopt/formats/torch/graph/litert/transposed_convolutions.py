"""Transposed convolutions in the forms of TFLite's operator: without padding, or ``stride`` times as large.

PyTorch removes ``padding`` from both ends of the full result and computes ``output_padding`` further rows at
the far end. All other forms are the unpadded convolution followed by a slice, which is exact.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node

KINDS = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
"""Number of spatial axes by operator."""


class _Axis(NamedTuple):
    """One spatial axis of a transposed convolution; ``kernel`` includes the dilation."""

    size: int
    kernel: int
    stride: int
    padding: int
    extra: int

    @property
    def full(self) -> int:
        """Size of the result without padding."""
        return (self.size - 1) * self.stride + self.kernel

    @property
    def output(self) -> int:
        return self.full - 2 * self.padding + self.extra


def crop_transposed_convolution(editor: GraphEditor, node: "Node") -> bool:
    """Replace padding, output padding and dilation by a larger kernel, a slice, and rows of bias."""
    import torch

    rank = KINDS.get(operator_name(node), 0)
    if not rank or node.kwargs:
        return False
    aten = torch.ops.aten
    x, weight, bias, stride, padding, extra, groups, dilation = _arguments(node, rank)
    shape, kernel = editor.shape(x), editor.shape(weight)
    # Without a batch axis, the ranks differ by one.
    if shape is None or kernel is None or len(shape) != rank + 2:
        return False
    is_dilated = any(step > 1 for step in dilation)
    if is_dilated and editor.is_constant(weight):
        weight = editor.insert_constant(node, _dilated(editor.value(weight), dilation), str(weight.target))
        dilation, kernel = [1] * rank, editor.shape(weight)
    assert kernel is not None
    spans = [step * (size - 1) + 1 for step, size in zip(dilation, kernel[2:], strict=True)]
    axes = [_Axis(*values) for values in zip(shape[2:], spans, stride, padding, extra, strict=True)]
    plain = all(axis.padding == axis.extra == 0 for axis in axes)
    same = all(axis.output == axis.size * axis.stride and axis.extra == 0 for axis in axes)
    if not is_dilated and (plain or same):
        return False
    target = {
        1: aten.conv_transpose1d.default,
        2: aten.conv_transpose2d.input,
        3: aten.conv_transpose3d.input,
    }
    channels = kernel[1] * groups
    beyond = [max(0, axis.extra - axis.padding) for axis in axes]
    inner = None if any(beyond) else bias
    zero = [0] * rank
    made = editor.insert(
        node,
        target[rank],
        (x, weight, inner, stride, zero, zero, groups, dilation),
        (shape[0], channels, *(axis.full for axis in axes)),
    )
    sizes = [shape[0], channels, *(axis.full for axis in axes)]
    for at, axis in enumerate(axes):
        end = min(axis.full, axis.padding + axis.output)
        if axis.padding or end < axis.full:
            sizes[2 + at] = end - axis.padding
            made = editor.insert(node, aten.slice.Tensor, (made, 2 + at, axis.padding, end), tuple(sizes))
    if any(beyond):
        # No input reaches these rows.
        amounts = [amount for size in reversed(beyond) for amount in (0, size)]
        made = editor.insert(node, aten.constant_pad_nd.default, (made, amounts, 0.0), node)
        if bias is not None:
            offset = editor.value(bias).reshape(-1, *[1] * rank)
            constant = editor.insert_constant(node, offset, str(bias.target))
            made = editor.insert(node, aten.add.Tensor, (made, constant), node)
    return editor.replace(node, made)


def _arguments(node: "Node", rank: int) -> tuple[Any, ...]:
    """Input, weight, bias, stride, padding, output padding, groups, dilation; one value per axis."""
    defaults = (None, None, None, [1], [0], [0], 1, [1])
    values = (*node.args, *defaults[len(node.args) :])
    return tuple(
        list(value) * (rank if len(value) == 1 else 1) if isinstance(value, list | tuple) else value
        for value in values
    )


def _dilated(weight: Any, dilation: list[int]) -> Any:
    """The weight with zeros between its elements: TFLite has no dilated transposed convolution."""
    sizes = [step * (size - 1) + 1 for step, size in zip(dilation, weight.shape[2:], strict=True)]
    result = weight.new_zeros((*weight.shape[:2], *sizes))
    result[(..., *(slice(None, None, step) for step in dilation))] = weight
    return result
