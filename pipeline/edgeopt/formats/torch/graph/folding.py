"""Rules that compute beforehand: constants, and per-channel arithmetic inside the layer before it."""

from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.graph_editor import VERSION, Draft
from edgeopt.formats.torch.graph.operators import AFFINE, CONVOLUTIONS, operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

GROWTH, SMALL = 4, 1 << 16
"""A folded constant may have this many times the values it is made from, or this many values."""


def fold_constant(draft: Draft, node: "Node") -> bool:
    """Compute now what depends on no input."""
    import torch

    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable:
        return False
    needed = draft.values_in((node.args, node.kwargs))
    if not all(draft.is_constant(other) for other in needed):
        return False
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), draft.value)
    value = node.target(*args, **kwargs)
    if not isinstance(value, torch.Tensor):
        return False
    before = sum(draft.value(other).numel() for other in needed)
    if value.numel() > max(GROWTH * before, SMALL):
        return False  # an expanded constant is better made on the device
    hint = str(needed[0].target) if needed else "constant"
    return draft.replace(node, draft.store(node, value, hint))


class _Norm(NamedTuple):
    """A batch norm as ``x * scale + shift``, per channel, in float64."""

    node: Any
    x: Any
    mean: Any
    scale: "torch.Tensor"
    shift: "torch.Tensor"


def fold_batch_norm(draft: Draft, node: "Node") -> bool:
    """Put a batch norm into the layer before it, or write it as a product and a sum."""
    import torch

    norm = _batch_norm(draft, node)
    if norm is None:
        return False
    layer = draft.layer_before(norm.node, norm.x)
    if layer is not None and (norm.node is node or len(norm.node.users) == 1):
        if norm.node is not node:
            # A norm of several results lets go of the layer, and is dead once its first result is.
            norm.node.args = (layer.args[0], *norm.node.args[1:])
        return _scale_layer(draft, node, layer, norm.scale, norm.shift)
    shape = (1, -1, *[1] * (draft.rank(norm.x) - 2))
    hint = str(norm.mean.target)
    factor = draft.store(node, norm.scale.float().reshape(shape), f"{hint}_scale")
    offset = draft.store(node, norm.shift.float().reshape(shape), f"{hint}_shift")
    product = draft.new(node, torch.ops.aten.mul.Tensor, (norm.x, factor), norm.x)
    return draft.replace(node, draft.new(node, torch.ops.aten.add.Tensor, (product, offset), norm.x))


def _batch_norm(draft: Draft, node: Any) -> _Norm | None:
    name = operator_name(node)
    norm = node.args[0] if name == "getitem" and node.args[1] == 0 else node
    if operator_name(norm) == "_native_batch_norm_legit_no_training":
        x, weight, bias, mean, variance, _, epsilon = norm.args[:7]
        training: Any = False
    elif (name, operator_name(norm)) in (("batch_norm", "batch_norm"), ("getitem", "native_batch_norm")):
        x, weight, bias, mean, variance, training, _, epsilon = norm.args[:8]
    else:
        return None
    if norm is node and name != "batch_norm":
        return None
    if training or not draft.is_constant(mean) or not draft.is_constant(variance):
        return None
    scale = (draft.value(variance).double() + epsilon).rsqrt()
    if weight is not None:
        scale = scale * draft.value(weight).double()
    shift = -draft.value(mean).double() * scale
    if bias is not None:
        shift = shift + draft.value(bias).double()
    return _Norm(norm, x, mean, scale, shift)


def fold_affine(draft: Draft, node: "Node") -> bool:
    """Put ``+ - * /`` with a constant per channel into the layer before it."""
    import torch

    name = operator_name(node)
    if name not in AFFINE or node.kwargs or len(node.args) != 2:
        return False
    one, none = torch.ones(1), torch.zeros(1)
    for position in (0, 1):
        layer = draft.layer_before(node, node.args[position])
        if layer is None or draft.shape(layer) != draft.shape(node):
            continue
        other = _per_channel(draft, node.args[1 - position], layer)
        if other is None or (name == "div" and position == 1):
            continue
        if name == "add":
            scale, shift = one, other
        elif name == "sub":
            scale, shift = (one, -other) if position == 0 else (-one, other)
        else:
            scale, shift = other if name == "mul" else 1 / other, none
        return _scale_layer(draft, node, layer, scale, shift)
    return False


def _per_channel(draft: Draft, value: object, layer: "Node") -> "torch.Tensor | None":
    """A constant operand as one number (or one per channel) of the layer's output, or None."""
    import torch

    if isinstance(value, int | float):
        return torch.tensor([float(value)], dtype=torch.double)
    if not draft.is_constant(value):
        return None
    tensor = draft.value(value)
    rank = draft.rank(layer)
    if tensor.numel() == 1:
        return tensor.double().reshape(1)
    if tensor.dim() > rank or not tensor.is_floating_point():
        return None
    axis = rank - 1 if operator_name(layer) == "linear" else 1
    full = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    if any(size != 1 for index, size in enumerate(full) if index != axis):
        return None
    return tensor.double().reshape(-1)


def _scale_layer(
    draft: Draft, node: "Node", layer: "Node", scale: "torch.Tensor", shift: "torch.Tensor"
) -> bool:
    """Replace ``node`` by ``layer * scale + shift``, both per output channel, in float64."""
    import torch

    weight, bias = draft.value(layer.args[1]), layer.args[2]
    old = torch.zeros(weight.shape[0], dtype=torch.double) if bias is None else draft.value(bias).double()
    scaled = weight.double() * scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    moved = (old * scale.double() + shift.double()).expand(weight.shape[0])
    hint = str(layer.args[1].target)
    new_weight = draft.store(layer, scaled.to(weight.dtype), hint)
    new_bias = draft.store(
        layer, moved.to(weight.dtype), _bias_name(hint) if bias is None else str(bias.target)
    )
    new = draft.new(node, layer.target, (layer.args[0], new_weight, new_bias, *layer.args[3:]), node)
    draft.replace(node, new)
    draft.graph.erase_node(layer)
    return True


def _bias_name(weight: str) -> str:
    name = VERSION.sub("", weight)
    for ending in ("weight", "kernel"):
        name = name.removesuffix(ending)
    return name.rstrip("_") + "_bias"


def fold_padding(draft: Draft, node: "Node") -> bool:
    """Zero padding alike on both sides goes into the convolution after it."""
    if operator_name(node) not in CONVOLUTIONS or len(node.args) < 7:
        return False
    pad = node.args[0]
    if operator_name(pad) != "constant_pad_nd" or (len(pad.args) > 2 and pad.args[2] != 0):
        return False
    if not isinstance(node.args[4], list | tuple):
        return False
    rank = draft.rank(node) - 2
    amounts = list(pad.args[1])
    amounts += [0] * (2 * (rank + 2) - len(amounts))
    pairs = [(amounts[2 * i], amounts[2 * i + 1]) for i in range(rank + 2)]
    if any(before != after or before < 0 for before, after in pairs) or any(
        pair != (0, 0) for pair in pairs[rank:]
    ):
        return False
    given = list(node.args[4]) * rank if len(node.args[4]) == 1 else list(node.args[4])
    padding = [old + pairs[rank - 1 - i][0] for i, old in enumerate(given)]
    node.args = (pad.args[0], *node.args[1:4], padding, *node.args[5:])
    return True
