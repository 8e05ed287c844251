"""Pairs of layers between which channels can be rescaled without changing the output of the model.

A tensor of channel indices is propagated from the output of the first layer: every element holds the channel
that the value in its place belongs to. The indices pass through activations, pooling, padding, reshapes and
permutes in the same way as the values. At the next layer they determine which of its weights read which
channel.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.layers import Layer, layers
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

HOMOGENEOUS = frozenset({"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel"})
"""Positively homogeneous activations: f(s x) = s f(x) for every s > 0."""

MOVES = frozenset({"reshape", "permute", "slice", "expand"})

POOLS = frozenset(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_bilinear2d".split()
)
"""Positively homogeneous operators on ``[batch, channels, *positions]`` that do not mix channels."""

PADDING = -1
"""Channel index of a zero from padding."""


class Pair(NamedTuple):
    """Two consecutive layers; no other operator reads the tensor between them."""

    first: Layer
    second: Layer
    readers: "torch.Tensor"
    """Shape ``[outputs, inputs / groups]`` of ``second``: the channel of ``first`` that each weight reads."""
    between: Any
    """The last node of the elementwise chain: its range is that of the tensor between the layers."""
    clipped: Any
    """A clipping activation in between, such as ReLU6, or None: the pair is valid only if it is replaced."""
    ceiling: float
    """Upper bound of that activation; 0 without one."""

    @property
    def name(self) -> str:
        return f"{self.first.name} -> {self.second.name}"


def pairs(graph: "GraphModule") -> list[Pair]:
    """All pairs of a graph in the plain form, in order of execution; found from shapes alone."""
    known = {layer.node: layer for layer in layers(graph)}
    candidates = (_pair(layer, known) for layer in known.values())
    return [pair for pair in candidates if pair is not None]


def _pair(first: Layer, known: dict[Any, Layer]) -> Pair | None:
    node: Any = first.node
    between: Any = node
    clipped, ceiling = None, 0.0
    indices: torch.Tensor | None = _channel_indices(_shape(node), first.axis)
    # A second reader, such as a residual connection, would see rescaled values.
    while indices is not None and len(node.users) == 1:
        reader = next(iter(node.users))
        if reader in known and reader.args[0] is node:
            readers = _weight_channels(known[reader], indices)
            if readers is None:
                return None
            return Pair(first, known[reader], readers, between, clipped, ceiling)
        # A ceiling does not scale with its input. The caller may remove one that no value reaches; a pair
        # with a second ceiling is rejected.
        limit = ceiling_of(reader)
        if limit is not None and clipped is None:
            clipped, ceiling = reader, limit
        elif limit is not None or reader.op != "call_function" or reader.args[0] is not node:
            return None
        # Activations keep every value in its place, and so its channel.
        if limit is not None or operator_name(reader) in HOMOGENEOUS:
            between = reader if between is node else between
        else:
            indices = _propagate(reader, indices)
        node = reader
    return None


def ceiling_of(node: Any) -> float | None:
    """Upper bound of a ReLU with a ceiling, such as 6.0 of ReLU6; None for other operators."""
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


def _channel_indices(shape: tuple[int, ...], axis: int) -> "torch.Tensor":
    import torch

    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return torch.arange(shape[axis]).reshape(sizes).expand(shape)


def _propagate(node: Any, indices: "torch.Tensor") -> "torch.Tensor | None":
    """Channel indices after an operator; None if it mixes channels or is unknown."""
    name = operator_name(node)
    if name == "getitem":
        # Only the values of pooling with indices belong to channels.
        return indices if node.args[1] == 0 else None
    if name in MOVES:
        # The operator itself, run on the indices.
        moved: torch.Tensor = node.target(indices, *node.args[1:], **node.kwargs)
        return moved
    if name == "constant_pad_nd":
        # Zero is the only constant that stays the same under every scale.
        if len(node.args) > 2 and node.args[2] != 0:
            return None
        padded: torch.Tensor = node.target(indices, node.args[1], PADDING)
        return padded
    if name in POOLS:
        channels = _one_per_index(indices, 1)
        meta = node.meta["tensor_meta"]
        shape = tuple((meta[0] if name.endswith("_with_indices") else meta).shape)
        return None if channels is None else channels.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)
    if name in ("mean", "amax") and len(node.args) > 1 and node.args[1]:
        axes = [int(axis) % indices.dim() for axis in node.args[1]]
        keepdim = bool(node.args[2]) if len(node.args) > 2 else False
        # Equal minimum and maximum: every reduction stays within one channel.
        least, most = indices.amin(axes, keepdim), indices.amax(axes, keepdim)
        return most if bool((least == most).all()) else None
    return None


def _one_per_index(indices: "torch.Tensor", axis: int) -> "torch.Tensor | None":
    """The one channel at each index along an axis; None if there are several."""
    rows = indices.movedim(axis, 0).reshape(indices.shape[axis], -1)
    channels = rows.amax(1)
    single = (rows == channels[:, None]) | (rows == PADDING)
    return channels if bool(single.all()) else None


def _weight_channels(layer: Layer, indices: "torch.Tensor") -> "torch.Tensor | None":
    import torch

    channels = _one_per_index(indices, layer.axis)
    if channels is None:
        return None
    outputs = _shape(layer.node)[layer.axis]
    # An output of group g reads the g-th consecutive block of input channels.
    inside = len(channels) // layer.groups
    group = torch.arange(outputs) // (outputs // layer.groups)
    return channels[group[:, None] * inside + torch.arange(inside)]
