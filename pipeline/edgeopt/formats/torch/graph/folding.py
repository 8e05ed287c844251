"""Rewriting rules that fold constants, and merge per-channel arithmetic and padding into layers."""

from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.graph_editor import VERSION, GraphEditor
from edgeopt.formats.torch.graph.operators import AFFINE, CONVOLUTIONS, operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

GROWTH, SMALL = 4, 1 << 16
"""Size limits of a folded constant: ``GROWTH`` times the elements of its operands, or ``SMALL`` elements."""


def fold_constant(editor: GraphEditor, node: "Node") -> bool:
    """Evaluate an operator whose operands are all constant; of several results, each that is read."""
    import torch

    if operator_name(node) == "getitem" and editor.is_node(node.args[0]):
        values = _evaluated(editor, node.args[0])
        if not isinstance(values, list | tuple) or not isinstance(values[node.args[1]], torch.Tensor):
            return False
        hint = str(editor.nodes_in(node.args[0].args)[0].target)
        return editor.replace(node, editor.insert_constant(node, values[node.args[1]], hint))
    value = _evaluated(editor, node)
    if not isinstance(value, torch.Tensor):
        return False
    operands = editor.nodes_in((node.args, node.kwargs))
    before = sum(editor.value(other).numel() for other in operands)
    if value.numel() > max(GROWTH * before, SMALL):
        return False  # expanding a constant at run time is cheaper than storing it expanded
    hint = str(operands[0].target) if operands else "constant"
    return editor.replace(node, editor.insert_constant(node, value, hint))


def _evaluated(editor: GraphEditor, node: "Node") -> Any:
    """The result of an operator whose operands are all constant; None for others."""
    import torch

    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    # Random operators must be evaluated at run time, in-place ones for their side effect.
    if torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable:
        return None
    if not all(editor.is_constant(other) for other in editor.nodes_in((node.args, node.kwargs))):
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), editor.value)
    return node.target(*args, **kwargs)


class _Norm(NamedTuple):
    """A batch norm as ``x * scale + shift``, per channel, in float64."""

    node: Any
    x: Any
    mean: Any
    scale: "torch.Tensor"
    shift: "torch.Tensor"


def fold_batch_norm(editor: GraphEditor, node: "Node") -> bool:
    """Merge a batch norm into the preceding layer, or replace it by a product and a sum."""
    import torch

    norm = _batch_norm(editor, node)
    if norm is None:
        return False
    layer = editor.layer_before(norm.node, norm.x)
    if layer is not None and (norm.node is node or len(norm.node.users) == 1):
        if norm.node is not node:
            # ``node`` is the getitem of a norm with several results. Detached from the layer, the norm
            # itself no longer counts as a reader; it is dead once its getitem is replaced.
            norm.node.args = (layer.args[0], *norm.node.args[1:])
        return _scale_layer(editor, node, layer, norm.scale, norm.shift)
    # Without a layer to merge into, mul and add remain: every converter and int8 kernel supports them.
    shape = (1, -1, *[1] * (editor.rank(norm.x) - 2))
    hint = str(norm.mean.target)
    factor = editor.insert_constant(node, norm.scale.float().reshape(shape), f"{hint}_scale")
    offset = editor.insert_constant(node, norm.shift.float().reshape(shape), f"{hint}_shift")
    product = editor.insert(node, torch.ops.aten.mul.Tensor, (norm.x, factor), norm.x)
    return editor.replace(node, editor.insert(node, torch.ops.aten.add.Tensor, (product, offset), norm.x))


def _batch_norm(editor: GraphEditor, node: Any) -> _Norm | None:
    """Parameters of a batch norm whose output is ``node``, or None."""
    name = operator_name(node)
    # Variants of the operator differ in results and arguments: some return (output, mean, rstd).
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
    # In training mode the statistics come from the batch: nothing is constant.
    if training or not editor.is_constant(mean) or not editor.is_constant(variance):
        return None
    scale = (editor.value(variance).double() + epsilon).rsqrt()
    if weight is not None:
        scale = scale * editor.value(weight).double()
    shift = -editor.value(mean).double() * scale
    if bias is not None:
        shift = shift + editor.value(bias).double()
    return _Norm(norm, x, mean, scale, shift)


def fold_affine(editor: GraphEditor, node: "Node") -> bool:
    """Merge ``+ - * /`` with a scalar or per-channel constant into the preceding layer."""
    import torch

    name = operator_name(node)
    if name not in AFFINE or node.kwargs or len(node.args) != 2:
        return False
    one, none = torch.ones(1), torch.zeros(1)
    for position in (0, 1):
        layer = editor.layer_before(node, node.args[position])
        # A broadcast that enlarges the output is no per-channel operation.
        if layer is None or editor.shape(layer) != editor.shape(node):
            continue
        other = _per_channel(editor, node.args[1 - position], layer)
        # A constant divided by the layer's output is not affine in that output.
        if other is None or (name == "div" and position == 1):
            continue
        if name == "add":
            scale, shift = one, other
        elif name == "sub":
            scale, shift = (one, -other) if position == 0 else (-one, other)
        else:
            scale, shift = other if name == "mul" else 1 / other, none
        return _scale_layer(editor, node, layer, scale, shift)
    return False


def _per_channel(editor: GraphEditor, value: object, layer: "Node") -> "torch.Tensor | None":
    """A constant operand as one value, or one per output channel of the layer; otherwise None."""
    import torch

    if isinstance(value, int | float):
        return torch.tensor([float(value)], dtype=torch.double)
    if not editor.is_constant(value):
        return None
    tensor = editor.value(value)
    rank = editor.rank(layer)
    if tensor.numel() == 1:
        return tensor.double().reshape(1)
    if tensor.dim() > rank or not tensor.is_floating_point():
        return None
    # Channels are the last axis of a linear layer, axis 1 of a convolution; broadcasting pads in front.
    axis = rank - 1 if operator_name(layer) == "linear" else 1
    full = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    if any(size != 1 for index, size in enumerate(full) if index != axis):
        return None
    return tensor.double().reshape(-1)


def _scale_layer(
    editor: GraphEditor, node: "Node", layer: "Node", scale: "torch.Tensor", shift: "torch.Tensor"
) -> bool:
    """Replace ``node`` by ``layer * scale + shift``, both per output channel, computed in float64."""
    import torch

    weight, bias = editor.value(layer.args[1]), layer.args[2]
    old = torch.zeros(weight.shape[0], dtype=torch.double) if bias is None else editor.value(bias).double()
    # W' = s W and b' = s b + t, rounded to the weights' own type only once.
    scaled = weight.double() * scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    moved = (old * scale.double() + shift.double()).expand(weight.shape[0])
    hint = str(layer.args[1].target)
    new_weight = editor.insert_constant(layer, scaled.to(weight.dtype), hint)
    new_bias = editor.insert_constant(
        layer, moved.to(weight.dtype), _bias_name(hint) if bias is None else str(bias.target)
    )
    new = editor.insert(node, layer.target, (layer.args[0], new_weight, new_bias, *layer.args[3:]), node)
    editor.replace(node, new)
    editor.graph.erase_node(layer)
    return True


def _bias_name(weight: str) -> str:
    """Name for a new bias, derived from that of the weight."""
    name = VERSION.sub("", weight)
    for ending in ("weight", "kernel"):
        name = name.removesuffix(ending)
    return name.rstrip("_") + "_bias"


def fold_padding(editor: GraphEditor, node: "Node") -> bool:
    """Merge symmetric zero padding into the following convolution."""
    if operator_name(node) not in CONVOLUTIONS or len(node.args) < 7:
        return False
    pad = node.args[0]
    # A convolution pads with zeros only.
    if operator_name(pad) != "constant_pad_nd" or (len(pad.args) > 2 and pad.args[2] != 0):
        return False
    if not isinstance(node.args[4], list | tuple):
        return False  # "same" or "valid", which ``canonicalize`` has yet to replace
    rank = editor.rank(node) - 2
    amounts = list(pad.args[1])
    amounts += [0] * (2 * (rank + 2) - len(amounts))
    # From the last axis to the first: the spatial axes, then channels and batch, which must not be padded.
    pairs = [(amounts[2 * i], amounts[2 * i + 1]) for i in range(rank + 2)]
    if any(before != after or before < 0 for before, after in pairs) or any(
        pair != (0, 0) for pair in pairs[rank:]
    ):
        return False
    current = list(node.args[4]) * rank if len(node.args[4]) == 1 else list(node.args[4])
    padding = [old + pairs[rank - 1 - i][0] for i, old in enumerate(current)]
    node.args = (pad.args[0], *node.args[1:4], padding, *node.args[5:])
    return True
