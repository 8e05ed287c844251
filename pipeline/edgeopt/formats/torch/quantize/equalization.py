"""Cross-layer equalization: scale channels up in one layer and down in the next, until their ranges match.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721),
section 4.1. With ranges r1 of a channel's weights where it is made and r2 where it is read, dividing by
s = sqrt(r1 / r2) there and multiplying here makes both sqrt(r1 r2). A depthwise layer between two others
is the second of one pair and the first of the next, so repeating over all pairs also finds the optimum for
such triples.

One thing is added, where the range of each channel's values is known. A channel of small weights and a large
bias would be scaled up until its constant outgrew the tensor that it lies in: the paper moves such
biases into the next layer, which is exact only without padding. Here the range r1 of a channel is at least
that of its values, measured in the units of the layer's other channels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.formats.torch.graph.chains import NOBODY, Pair

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

SWEEPS = 300
CONVERGED = 1e-3
"""Largest |log s| of a sweep that ends the search."""

USUAL = 0.9
"""The share of channels, by ratio of values to weights, whose range is told by their weights alone."""

DEAD = 1e-7
"""Share of the largest range below which a channel counts as absent, and stays as it is."""


class Equalized(NamedTuple):
    """How far apart a pair's channel ranges were, largest divided by smallest, before and after."""

    pair: Pair
    before: float
    after: float


def equalize(
    graph: "GraphModule", found: Sequence[Pair], values: "Mapping[str, torch.Tensor]"
) -> list[Equalized]:
    """Rescale the layers of all pairs in place.

    Args:
        graph: whose weights are changed; it computes the same as before.
        found: pairs of it.
        values: by name of the pair, the largest magnitude of every channel of the tensor between, for as
            many pairs as it is known of.
    """
    import torch

    tables = {
        layer.name: layer.weight(graph).double().abs().flatten(2).amax(2)
        if layer.weight(graph).dim() > 2
        else layer.weight(graph).double().abs()
        for pair in found
        for layer in (pair.first, pair.second)
    }
    total = {pair.name: torch.ones(len(tables[pair.first.name]), dtype=torch.double) for pair in found}
    before = [_spread(pair, tables) for pair in found]
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in found:
            scale = _scale(pair, tables, values.get(pair.name), total[pair.name])
            tables[pair.first.name] = tables[pair.first.name] / scale[:, None]
            tables[pair.second.name] = tables[pair.second.name] * _of_readers(pair, scale)
            total[pair.name] = total[pair.name] * scale
            moved = max(moved, float(scale.log().abs().max()))
        if moved < CONVERGED:
            break
    for pair in found:
        _carry_out(graph, pair, total[pair.name])
    return [Equalized(pair, old, _spread(pair, tables)) for pair, old in zip(found, before, strict=True)]


def _scale(
    pair: Pair,
    tables: "Mapping[str, torch.Tensor]",
    values: "torch.Tensor | None",
    total: "torch.Tensor",
) -> "torch.Tensor":
    """What to divide each channel by now."""
    import torch

    made = tables[pair.first.name].amax(1)
    read = _read(pair, tables[pair.second.name], len(made))
    if values is not None:
        now = values / total
        live = (made > DEAD * made.max()) & (now > 0)
        if live.any():
            unit = torch.quantile(now[live] / made[live], USUAL)
            made = torch.maximum(made, now / unit)
    used = (made > DEAD * made.max()) & (read > DEAD * read.max())
    return torch.where(used, torch.sqrt(made / read.clamp_min(1e-300)), torch.ones_like(made))


def _read(pair: Pair, table: "torch.Tensor", channels: int) -> "torch.Tensor":
    """The largest weight of ``second`` that reads each channel; 0 where none does."""
    import torch

    which = pair.readers.flatten()
    real = which != NOBODY
    empty = torch.zeros(channels, dtype=table.dtype)
    return empty.scatter_reduce(0, which[real], table.flatten()[real], "amax")


def _of_readers(pair: Pair, scale: "torch.Tensor") -> "torch.Tensor":
    """``[outputs, inputs / groups]`` of the second layer: the scale of the channel that is read."""
    import torch

    return torch.where(pair.readers == NOBODY, torch.ones(()).double(), scale[pair.readers.clamp_min(0)])


def _spread(pair: Pair, tables: "Mapping[str, torch.Tensor]") -> float:
    """Largest range of a channel divided by the smallest, on the worse side of the pair."""
    made = tables[pair.first.name].amax(1)
    spreads = [1.0]
    for ranges in (made, _read(pair, tables[pair.second.name], len(made))):
        live = ranges[ranges > DEAD * ranges.max()]
        if len(live):
            spreads.append(float(live.max() / live.min()))
    return max(spreads)


def _carry_out(graph: "GraphModule", pair: Pair, scale: "torch.Tensor") -> None:
    first, second = pair.first, pair.second
    weight = first.weight(graph).double()
    first.set_weight(graph, weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
    if first.node.args[2] is not None:
        first.set_bias(graph, first.bias(graph).double() / scale)
    weight = second.weight(graph).double()
    factor = _of_readers(pair, scale)
    second.set_weight(graph, weight * factor.reshape(*factor.shape, *[1] * (weight.dim() - 2)))
