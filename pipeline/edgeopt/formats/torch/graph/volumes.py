"""Convolutions and pooling of volumes as those of images, for runtimes without a kernel for them."""

import copy
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.formats.torch.lab.engine import quiet

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


TRANSPOSED = "conv_transpose3d"


def as_images(graph: "GraphModule") -> "GraphModule":
    """Rewrite the volume convolutions and pools of a graph in the plain form at batch 1, without loss.

    The planes of a volume become a batch of images. Each image has the channels of all planes that the kernel
    covers at that depth, so that one convolution of images computes the same sums. For a transposed one,
    planes of zeros come between those of the volume. Pools are separable: first within planes, then across
    them.

    Args:
        graph: the graph, which stays unchanged.

    Returns:
        The new graph, in which the weights keep their names; the argument itself if nothing changes.
    """
    if not any(_is_volume(node, graph) or _is_pool(node) for node in graph.graph.nodes):
        return graph
    with quiet():
        graph = copy.deepcopy(graph)
    flat: dict[str, Any] = {}
    for node in [node for node in graph.graph.nodes if _is_volume(node, graph)]:
        weight = str(node.args[1].target)
        value = graph.get_buffer(weight)
        if operator_name(node) == TRANSPOSED:
            flat.setdefault(weight, value.flip(2).transpose(1, 2).flatten(0, 1))
        else:
            flat.setdefault(weight, value.flatten(1, 2))
        _rewrite(node, value.shape[2])
    for node in [node for node in graph.graph.nodes if _is_pool(node)]:
        _separate(node)
    for name, value in flat.items():
        setattr(graph, name, value)
    graph.recompile()
    return graph


def _is_volume(node: "Node", graph: "GraphModule") -> bool:
    """Whether a node is a convolution of one volume with constant weights that no other operator reads."""
    kind = operator_name(node)
    if kind not in ("conv3d", TRANSPOSED) or node.args[1].op != "get_attr" or not _shape(node.args[0]):
        return False
    weight = node.args[1].target
    readers = [user for each in graph.graph.nodes if each.target == weight for user in each.users]
    return _shape(node.args[0])[:1] == (1,) and all(operator_name(user) == kind for user in readers)


def _shape(node: "Node") -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta", node.meta.get("val"))
    return tuple(getattr(meta, "shape", ()))


def _rewrite(node: "Node", size: int) -> None:
    """Replace a convolution, whose kernel covers ``size`` planes."""
    import torch

    aten, graph = torch.ops.aten, node.graph
    declared = node.target._schema.arguments
    given: dict[str, Any] = {each.name: each.default_value for each in declared}
    given |= dict(zip(given, node.args, strict=False))
    x, weight, bias, groups = (given.pop(name) for name in ("input", "weight", "bias", "groups"))
    sizes = {name: list(values) * (3 // len(values)) for name, values in given.items()}
    stride, padding, dilation = (sizes[name] for name in ("stride", "padding", "dilation"))
    channels, depth, height, width = _shape(x)[1:]
    step, pad, gap = stride[0], padding[0], dilation[0]
    count = int(_shape(node)[2])
    first, before, after = 0, pad, pad
    with graph.inserting_before(node):
        planes = graph.call_function(aten.reshape.default, (x, [channels, depth, height, width]))
        planes = graph.call_function(aten.permute.default, (planes, [1, 0, 2, 3]))
        if operator_name(node) == TRANSPOSED:
            planes = _spread(node, planes, step)
            reach = gap * (size - 1)
            first, before = max(pad - reach, 0), max(reach - pad, 0)
            after = max(first + count + reach - before - depth * step, 0)
            step = 1
        if before or after:
            padded = (planes, [0] * 6 + [before, after], 0.0)
            planes = graph.call_function(aten.constant_pad_nd.default, padded)
        # Channels outside, planes inside: the planes of a group's channels stay together.
        covered = [
            graph.call_function(aten.slice.Tensor, (planes, 0, start, start + step * (count - 1) + 1, step))
            for start in range(first, first + size * gap, gap)
        ]
        if size > 1:
            planes = graph.call_function(aten.stack.default, (covered, 2))
            shape = [count, channels * size, height, width]
            planes = graph.call_function(aten.reshape.default, (planes, shape))
        else:
            planes = covered[0]
        common = (planes, weight, bias, stride[1:], padding[1:])
        if operator_name(node) == TRANSPOSED:
            rest = (sizes["output_padding"][1:], groups, dilation[1:])
            made = graph.call_function(aten.conv_transpose2d.input, (*common, *rest))
        else:
            made = graph.call_function(aten.conv2d.default, (*common, dilation[1:], groups))
        moved = graph.call_function(aten.permute.default, (made, [1, 0, 2, 3]))
        volume = graph.call_function(aten.reshape.default, (moved, list(_shape(node))))
    # The next operator may be one of volumes, too.
    volume.meta = dict(node.meta)
    node.replace_all_uses_with(volume)
    graph.erase_node(node)


def _spread(node: "Node", planes: "Node", step: int) -> "Node":
    """The planes that a transposed convolution reads, with planes of zeros behind each."""
    import torch

    if step == 1:
        return planes
    aten, graph = torch.ops.aten, node.graph
    channels, depth, height, width = _shape(node.args[0])[1:]
    image = [channels, height, width]
    apart = graph.call_function(aten.reshape.default, (planes, [depth, 1, *image]))
    padded = graph.call_function(aten.constant_pad_nd.default, (apart, [0] * 7 + [step - 1], 0.0))
    return graph.call_function(aten.reshape.default, (padded, [depth * step, *image]))


def _is_pool(node: "Node") -> bool:
    """Whether a node is a pool of one volume that is separable: a maximum, or a mean without padding."""
    name = operator_name(node)
    if name not in ("max_pool3d", "avg_pool3d") or _shape(node.args[0])[:1] != (1,) or node.kwargs:
        return False
    return name == "max_pool3d" or (
        not any(_triple(node, 3, 0)) and not any(node.args[4:5]) and len(node.args) < 7
    )


def _triple(node: "Node", position: int, default: int) -> list[int]:
    """An argument with one value per axis."""
    given = node.args[position] if len(node.args) > position else default
    values = list(given) if isinstance(given, list | tuple) else [given]
    return values * (3 // len(values)) if values else []


def _separate(node: "Node") -> None:
    """Replace a pool of volumes by one within planes and one across them."""
    import torch

    aten, graph = torch.ops.aten, node.graph
    x = node.args[0]
    window = _triple(node, 1, 1)
    stride, padding = _triple(node, 2, 0) or window, _triple(node, 3, 0)
    channels, depth, height, width = _shape(x)[1:]
    after, rows, columns = _shape(node)[2:]
    if operator_name(node) == "max_pool3d":
        target: Any = aten.max_pool2d.default
        rest: list[tuple[Any, ...]]
        gaps, ceil = _triple(node, 4, 1), node.args[5] if len(node.args) > 5 else False
        rest = [(gaps[1:], ceil), ([gaps[0], 1], ceil)]
    else:
        target, rest = aten.avg_pool2d.default, [(), ()]
    with graph.inserting_before(node):
        planes = graph.call_function(aten.reshape.default, (x, [1, channels * depth, height, width]))
        made = graph.call_function(target, (planes, window[1:], stride[1:], padding[1:], *rest[0]))
        shape = [1, channels, depth, rows * columns]
        lines = graph.call_function(aten.reshape.default, (made, shape))
        across = ([window[0], 1], [stride[0], 1], [padding[0], 0])
        made = graph.call_function(target, (lines, *across, *rest[1]))
        volume = graph.call_function(aten.reshape.default, (made, [1, channels, after, rows, columns]))
    # The next operator may be one of volumes, too.
    volume.meta = dict(node.meta)
    node.replace_all_uses_with(volume)
    graph.erase_node(node)
