"""Pairs of layers between which each channel can be scaled up and down again without changing the output.

From a layer's output on, every value is accompanied by the number of the channel that it belongs to. The
numbers take the same way as the values, through activations, pooling, padding, reshapes and permutes, and
where the next layer is reached they tell which of its weights read which channel.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.layers import Layer, layers
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

HOMOGENEOUS = frozenset({"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel"})
"""Activations f with f(s x) = s f(x) for every s > 0."""

MOVES = frozenset({"reshape", "permute", "slice", "expand"})

POOLS = frozenset(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_bilinear2d".split()
)
"""Operators on ``[batch, channels, *positions]`` that keep channels apart."""

NOBODY = -1
"""In place of a channel's number: a zero from padding."""


class Pair(NamedTuple):
    """Two layers, one after the other, and nothing else reads what is between them."""

    first: Layer
    second: Layer
    readers: "torch.Tensor"
    """``[outputs, inputs / groups]`` of ``second``: the channel of ``first`` that each weight reads."""
    between: Any
    """The last node that works element by element: its range is the range of the tensor between."""
    clipped: Any
    """A clipping activation on the way, such as ReLU6, or none: the pair is one only without it."""
    ceiling: float
    """What that activation clips at."""

    @property
    def name(self) -> str:
        return f"{self.first.name} -> {self.second.name}"


def pairs(graph: "GraphModule") -> list[Pair]:
    """All pairs of a plain graph, in the order in which they run. Only shapes are looked at."""
    known = {layer.node: layer for layer in layers(graph)}
    found = (_pair(layer, known) for layer in known.values())
    return [pair for pair in found if pair is not None]


def _pair(first: Layer, known: dict[Any, Layer]) -> Pair | None:
    node: Any = first.node
    between: Any = node
    clipped, ceiling = None, 0.0
    numbers: torch.Tensor | None = _numbered(_shape(node), first.axis)
    while numbers is not None and len(node.users) == 1:
        reader = next(iter(node.users))
        if reader in known and reader.args[0] is node:
            readers = _readers(known[reader], numbers)
            if readers is None:
                return None
            return Pair(first, known[reader], readers, between, clipped, ceiling)
        limit = ceiling_of(reader)
        if limit is not None and clipped is None:
            clipped, ceiling = reader, limit
        elif limit is not None or reader.op != "call_function" or reader.args[0] is not node:
            return None
        if limit is not None or operator_name(reader) in HOMOGENEOUS:
            between = reader if between is node else between
        else:
            numbers = _followed(reader, numbers)
        node = reader
    return None


def ceiling_of(node: Any) -> float | None:
    """The upper end of an activation that is a ReLU with a ceiling, else none."""
    name = operator_name(node)
    if name == "relu6":
        return 6.0
    if name in ("hardtanh", "clamp"):
        low, high = [*node.args[1:3], None, None][:2]
        if isinstance(low, int | float) and isinstance(high, int | float) and low == 0 and high > 0:
            return float(high)
    return None


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _numbered(shape: tuple[int, ...], axis: int) -> "torch.Tensor":
    import torch

    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return torch.arange(shape[axis]).reshape(sizes).expand(shape)


def _followed(node: Any, numbers: "torch.Tensor") -> "torch.Tensor | None":
    """The numbers after an operator; none where it mixes channels or is not known."""
    name = operator_name(node)
    if name == "getitem":
        # The first result of pooling with indices.
        return numbers if node.args[1] == 0 else None
    if name in MOVES:
        moved: torch.Tensor = node.target(numbers, *node.args[1:], **node.kwargs)
        return moved
    if name == "constant_pad_nd":
        if len(node.args) > 2 and node.args[2] != 0:
            return None
        padded: torch.Tensor = node.target(numbers, node.args[1], NOBODY)
        return padded
    if name in POOLS:
        channels = _along(numbers, 1)
        meta = node.meta["tensor_meta"]
        shape = tuple((meta[0] if name.endswith("_with_indices") else meta).shape)
        return None if channels is None else channels.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)
    if name in ("mean", "amax") and len(node.args) > 1 and node.args[1]:
        axes = [int(axis) % numbers.dim() for axis in node.args[1]]
        kept = bool(node.args[2]) if len(node.args) > 2 else False
        least, most = numbers.amin(axes, kept), numbers.amax(axes, kept)
        return most if bool((least == most).all()) else None
    return None


def _along(numbers: "torch.Tensor", axis: int) -> "torch.Tensor | None":
    """One number per place along an axis; none where there are several."""
    rows = numbers.movedim(axis, 0).reshape(numbers.shape[axis], -1)
    channels = rows.amax(1)
    one = (rows == channels[:, None]) | (rows == NOBODY)
    return channels if bool(one.all()) else None


def _readers(layer: Layer, numbers: "torch.Tensor") -> "torch.Tensor | None":
    import torch

    channels = _along(numbers, layer.axis)
    if channels is None:
        return None
    outputs = _shape(layer.node)[layer.axis]
    inside = len(channels) // layer.groups
    group = torch.arange(outputs) // (outputs // layer.groups)
    return channels[group[:, None] * inside + torch.arange(inside)]
