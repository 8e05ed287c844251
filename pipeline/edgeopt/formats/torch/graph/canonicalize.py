"""Rewriting rules that bring operators into the canonical form which other rules and converters match."""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import (
    CONVOLUTIONS,
    NO_OPS,
    POOLS,
    RESHAPES,
    SYNONYMS,
    operator_name,
)

if TYPE_CHECKING:
    from torch.fx import Node

ASSERTIONS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"})

FILLED: "dict[str, float | None]" = {"zeros_like": 0.0, "new_zeros": 0.0, "ones_like": 1.0, "new_ones": 1.0}
FILLED |= dict.fromkeys(("full_like", "new_full", "fill"), None)
"""Operators that fill a tensor with one value: this one, or their last argument."""


def remove_no_op(editor: GraphEditor, node: "Node") -> bool:
    """Remove operators without effect: assertions, dropout, copies, reshapes to the same shape."""
    name = operator_name(node)
    if name in ASSERTIONS:
        # They return nothing, and fixed shapes make them redundant.
        editor.graph.erase_node(node)
        return True
    if name == "native_dropout" or not node.args or not editor.is_node(node.args[0]):
        return False
    source = node.args[0]
    # native_dropout returns (output, mask): only the use of its output can be replaced.
    if name == "getitem":
        dropped = operator_name(source) == "native_dropout" and node.args[1] == 0
        return dropped and editor.replace(node, source.args[0])
    if name in NO_OPS:
        return editor.replace(node, source)
    shape = editor.shape(source)
    if shape is None or editor.shape(node) is None:
        return False
    if name in ("to", "_to_copy", "type_as"):
        same = editor.dtype(source) == editor.dtype(node)
    elif name == "permute":
        same = list(node.args[1]) == list(range(len(shape)))
    else:
        # Steps of aten.slice are positive: a slice of the same shape selects everything.
        same = (name in RESHAPES or name in ("expand", "slice")) and shape == editor.shape(node)
    return same and editor.replace(node, source)


def canonicalize(editor: GraphEditor, node: "Node") -> bool:
    """Replace aliases of an operator, and add default arguments that were omitted."""
    name = operator_name(node)
    new: Node | None = None
    if name in RESHAPES - {"reshape"}:
        new = _reshape(editor, node)
    elif name in SYNONYMS:
        new = _synonym(editor, node, SYNONYMS[name])
    elif name in ("transpose", "t"):
        new = _permute(editor, node)
    elif name == "pad":
        new = _pad(editor, node)
    elif name in ("convolution", "_convolution"):
        new = _convolution(editor, node)
    elif name in ("addmm", "mm", "matmul"):
        new = _linear(editor, node)
    elif name in FILLED:
        new = _full(editor, node, FILLED[name])
    # The .padding overload takes "same" or "valid": later rules and converters need numbers.
    elif name in CONVOLUTIONS and not node.kwargs and _overload(node) == "padding":
        new = _padded_convolution(editor, node)
    elif name in CONVOLUTIONS and len(node.args) < 7 and not node.kwargs:
        # With all arguments present, later rules read them by position.
        node.args = _convolution_args(editor, node)
        return True
    elif name == "linear" and len(node.args) == 2:
        node.args = (*node.args, None)
        return True
    elif name in POOLS and not node.kwargs and node.args != (args := _pool_args(editor, node)):
        node.args = args
        return True
    return new is not None and editor.replace(node, new)


def _reshape(editor: GraphEditor, node: "Node") -> "Node | None":
    import torch

    shape = editor.shape(node)
    if shape is None:
        return None
    return editor.insert(node, torch.ops.aten.reshape.default, (node.args[0], list(shape)), node)


def _synonym(editor: GraphEditor, node: "Node", name: str) -> "Node | None":
    import torch

    if len(node.args) != 2 or node.kwargs:
        return None  # alpha and rounding_mode change the result
    packet = getattr(torch.ops.aten, name)
    overload = "Tensor" if editor.is_node(node.args[1]) else "Scalar"
    return editor.insert(node, getattr(packet, overload), node.args, node)


def _permute(editor: GraphEditor, node: "Node") -> "Node | None":
    import torch

    order = list(range(editor.rank(node)))
    if operator_name(node) == "t":
        if len(order) != 2:
            return None
        order = [1, 0]
    else:
        a, b = (int(axis) % len(order) for axis in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    return editor.insert(node, torch.ops.aten.permute.default, (node.args[0], order), node)


def _full(editor: GraphEditor, node: "Node", value: float | None) -> "Node | None":
    """A tensor of one value, which depends on no input."""
    import torch

    shape, dtype = editor.shape(node), editor.dtype(node)
    filling: Any = node.args[-1] if value is None else value
    if editor.is_constant(filling) and editor.value(filling).numel() == 1:
        filling = editor.value(filling).item()
    if shape is None or not isinstance(filling, int | float):
        return None
    new = editor.insert(node, torch.ops.aten.full.default, (list(shape), filling), node)
    new.kwargs = {"dtype": dtype}
    return new


def _pad(editor: GraphEditor, node: "Node") -> "Node | None":
    import torch

    if len(node.args) > 2 and node.args[2] != "constant":
        return None  # reflection and replication have no counterpart in a convolution's own padding
    fill = node.args[3] if len(node.args) > 3 and node.args[3] is not None else 0.0
    fill = node.kwargs.get("value", fill) or 0.0
    args = (node.args[0], list(node.args[1]), fill)
    return editor.insert(node, torch.ops.aten.constant_pad_nd.default, args, node)


def _convolution(editor: GraphEditor, node: "Node") -> "Node | None":
    import torch

    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
    if transposed or any(output_padding):
        return None  # a transposed convolution has its output channels on another axis of the weight
    aten = torch.ops.aten
    kinds: dict[int, Any] = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
    args = (x, weight, bias, stride, padding, dilation, groups)
    return editor.insert(node, kinds[editor.rank(x)], args, node)


def _overload(node: "Node") -> str:
    return str(getattr(node.target, "_overloadname", ""))


def _convolution_args(editor: GraphEditor, node: "Node") -> tuple[Any, ...]:
    """Complete arguments: input, weight, bias, stride, padding, dilation, groups."""
    rank = editor.rank(node.args[0]) - 2
    padding = "valid" if _overload(node) == "padding" else [0] * rank
    defaults = (None, None, None, [1] * rank, padding, [1] * rank, 1)
    return (*node.args, *defaults[len(node.args) :])


def _pool_args(editor: GraphEditor, node: "Node") -> tuple[Any, ...]:
    """Arguments of a pooling operator with one size per axis, and with a stride: the kernel if omitted."""
    rank = int(operator_name(node).split("pool")[1][0])
    x, kernel, stride, *rest = (*node.args, [])[: max(3, len(node.args))]
    sizes = [list(value or kernel) for value in (kernel, stride)]
    return (x, *(size * rank if len(size) == 1 else size for size in sizes), *rest)


def _padded_convolution(editor: GraphEditor, node: "Node") -> "Node | None":
    """Replace ``padding="same"`` or ``"valid"`` by an explicit pad before the convolution."""
    import torch

    x, weight, bias, stride, mode, dilation, groups = _convolution_args(editor, node)
    shape, kernel = editor.shape(x), editor.shape(weight)
    if shape is None or kernel is None:
        return None
    rank = len(kernel) - 2
    packet = getattr(torch.ops.aten, operator_name(node))
    if mode == "same":
        steps = list(dilation) * rank if len(dilation) == 1 else list(dilation)
        totals = [step * (size - 1) for step, size in zip(steps, kernel[2:], strict=True)]
        # aten pads from the last axis on; of an odd total, the larger half goes to the end.
        amounts = [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
        sizes = (*shape[:2], *(size + total for size, total in zip(shape[2:], totals, strict=True)))
        x = editor.insert(node, torch.ops.aten.constant_pad_nd.default, (x, amounts, 0.0), sizes)
    args = (x, weight, bias, stride, [0] * rank, dilation, groups)
    return editor.insert(node, packet.default, args, node)


def _linear(editor: GraphEditor, node: "Node") -> "Node | None":
    """Replace a product with a constant matrix by a linear layer."""
    import torch

    bias: Any = None
    if operator_name(node) == "addmm":
        bias, x, weight = node.args
        # beta and alpha scale the operands; a bias matrix would differ per row.
        if node.kwargs or not editor.is_constant(bias) or editor.value(bias).dim() != 1:
            return None
    else:
        x, weight = node.args
    if not editor.is_constant(weight) or editor.value(weight).dim() != 2:
        return None
    if not editor.is_node(x) or editor.rank(x) < 2:
        return None
    # mm multiplies by [in, out], linear stores [out, in].
    transposed = editor.insert_constant(node, editor.value(weight).t(), str(weight.target))
    return editor.insert(node, torch.ops.aten.linear.default, (x, transposed, bias), node)
