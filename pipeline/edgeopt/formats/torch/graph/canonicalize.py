"""Rules that write each operator the one way that other rules and converters know."""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import Draft
from edgeopt.formats.torch.graph.operators import CONVOLUTIONS, NOTHING, RESHAPES, SYNONYMS, operator_name

if TYPE_CHECKING:
    from torch.fx import Node

CHECKS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"})


def drop_nothing(draft: Draft, node: "Node") -> bool:
    """Remove what changes no value: checks, dropout, copies, reshapes to the same shape."""
    name = operator_name(node)
    if name in CHECKS:
        draft.graph.erase_node(node)
        return True
    if name == "native_dropout" or not node.args or not draft.is_value(node.args[0]):
        return False
    source = node.args[0]
    if name == "getitem":
        dropped = operator_name(source) == "native_dropout" and node.args[1] == 0
        return dropped and draft.replace(node, source.args[0])
    if name in NOTHING:
        return draft.replace(node, source)
    shape = draft.shape(source)
    if shape is None or draft.shape(node) is None:
        return False
    if name in ("to", "_to_copy", "type_as"):
        same = draft.dtype(source) == draft.dtype(node)
    elif name == "permute":
        same = list(node.args[1]) == list(range(len(shape)))
    else:
        same = (name in RESHAPES or name in ("expand", "slice")) and shape == draft.shape(node)
    return same and draft.replace(node, source)


def respell(draft: Draft, node: "Node") -> bool:
    """Replace synonyms, and fill in arguments that were left out."""
    name = operator_name(node)
    new: Node | None = None
    if name in RESHAPES - {"reshape"}:
        new = _reshape(draft, node)
    elif name in SYNONYMS:
        new = _synonym(draft, node, SYNONYMS[name])
    elif name in ("transpose", "t"):
        new = _permute(draft, node)
    elif name == "pad":
        new = _pad(draft, node)
    elif name in ("convolution", "_convolution"):
        new = _convolution(draft, node)
    elif name in ("addmm", "mm", "matmul"):
        new = _linear(draft, node)
    elif name in CONVOLUTIONS and not node.kwargs and _overload(node) == "padding":
        new = _padded_convolution(draft, node)
    elif name in CONVOLUTIONS and len(node.args) < 7 and not node.kwargs:
        node.args = _convolution_args(draft, node)
        return True
    elif name == "linear" and len(node.args) == 2:
        node.args = (*node.args, None)
        return True
    return new is not None and draft.replace(node, new)


def _reshape(draft: Draft, node: "Node") -> "Node | None":
    import torch

    shape = draft.shape(node)
    if shape is None:
        return None
    return draft.new(node, torch.ops.aten.reshape.default, (node.args[0], list(shape)), node)


def _synonym(draft: Draft, node: "Node", name: str) -> "Node | None":
    import torch

    if len(node.args) != 2 or node.kwargs:
        return None
    packet = getattr(torch.ops.aten, name)
    overload = "Tensor" if draft.is_value(node.args[1]) else "Scalar"
    return draft.new(node, getattr(packet, overload), node.args, node)


def _permute(draft: Draft, node: "Node") -> "Node | None":
    import torch

    order = list(range(draft.rank(node)))
    if operator_name(node) == "t":
        if len(order) != 2:
            return None
        order = [1, 0]
    else:
        a, b = (int(axis) % len(order) for axis in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    return draft.new(node, torch.ops.aten.permute.default, (node.args[0], order), node)


def _pad(draft: Draft, node: "Node") -> "Node | None":
    import torch

    if len(node.args) > 2 and node.args[2] != "constant":
        return None
    fill = node.args[3] if len(node.args) > 3 and node.args[3] is not None else 0.0
    fill = node.kwargs.get("value", fill) or 0.0
    args = (node.args[0], list(node.args[1]), fill)
    return draft.new(node, torch.ops.aten.constant_pad_nd.default, args, node)


def _convolution(draft: Draft, node: "Node") -> "Node | None":
    import torch

    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
    if transposed or any(output_padding):
        return None
    aten = torch.ops.aten
    kinds: dict[int, Any] = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
    args = (x, weight, bias, stride, padding, dilation, groups)
    return draft.new(node, kinds[draft.rank(x)], args, node)


def _overload(node: "Node") -> str:
    return str(getattr(node.target, "_overloadname", ""))


def _convolution_args(draft: Draft, node: "Node") -> tuple[Any, ...]:
    """All arguments: input, weight, bias, stride, padding, dilation, groups."""
    rank = draft.rank(node.args[0]) - 2
    padding = "valid" if _overload(node) == "padding" else [0] * rank
    defaults = (None, None, None, [1] * rank, padding, [1] * rank, 1)
    return (*node.args, *defaults[len(node.args) :])


def _padded_convolution(draft: Draft, node: "Node") -> "Node | None":
    """``padding="same"`` or ``"valid"``, as a padding in numbers before the convolution."""
    import torch

    x, weight, bias, stride, how, dilation, groups = _convolution_args(draft, node)
    shape, kernel = draft.shape(x), draft.shape(weight)
    if shape is None or kernel is None:
        return None
    rank = len(kernel) - 2
    packet = getattr(torch.ops.aten, operator_name(node))
    if how == "same":
        steps = list(dilation) * rank if len(dilation) == 1 else list(dilation)
        totals = [step * (size - 1) for step, size in zip(steps, kernel[2:], strict=True)]
        amounts = [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
        sizes = (*shape[:2], *(size + total for size, total in zip(shape[2:], totals, strict=True)))
        x = draft.new(node, torch.ops.aten.constant_pad_nd.default, (x, amounts, 0.0), sizes)
    args = (x, weight, bias, stride, [0] * rank, dilation, groups)
    return draft.new(node, packet.default, args, node)


def _linear(draft: Draft, node: "Node") -> "Node | None":
    """A product with a constant matrix."""
    import torch

    bias: Any = None
    if operator_name(node) == "addmm":
        bias, x, weight = node.args
        if node.kwargs or not draft.is_constant(bias) or draft.value(bias).dim() != 1:
            return None
    else:
        x, weight = node.args
    if not draft.is_constant(weight) or draft.value(weight).dim() != 2:
        return None
    if not draft.is_value(x) or draft.rank(x) < 2:
        return None
    turned = draft.store(node, draft.value(weight).t(), str(weight.target))
    return draft.new(node, torch.ops.aten.linear.default, (x, turned, bias), node)
