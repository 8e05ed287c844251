"""Cross-layer equalization: rescale channels between consecutive layers until their weight ranges match.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721),
section 4.1. Let r1 be the range of the weights that produce a channel and r2 that of the weights that read
it. Dividing the former by s = sqrt(r1 / r2) and multiplying the latter by s makes both ranges sqrt(r1 r2).
A depthwise layer between two others is the second of one pair and the first of the next, so iterating over
all pairs also converges to the optimum for such triples.

One addition applies if the range of each channel's values is known. A channel with small weights and a large
bias would be scaled up until its constant value exceeded the range of the whole tensor. The paper absorbs
such biases into the next layer, which is exact only without padding. Here the range r1 of a channel is at
least the range of its values, converted to weight units by the ratio that is typical of the layer.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.formats.torch.graph.chains import PADDING, Pair

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

SWEEPS = 300
"""Upper bound on the number of sweeps over all pairs."""
CONVERGED = 1e-3
"""Convergence threshold: the largest |log s| within a sweep."""

TYPICAL = 0.9
"""Quantile of the ratio of value range to weight range, over channels, that is typical of a layer."""

ABSENT = 1e-7
"""Fraction of the largest range below which a channel counts as absent and is not rescaled."""


class Equalized(NamedTuple):
    """Spread of a pair's channel ranges (largest divided by smallest) before and after equalization."""

    pair: Pair
    before: float
    after: float


def equalize(
    graph: "GraphModule", pairs: Sequence[Pair], values: "Mapping[str, torch.Tensor]"
) -> list[Equalized]:
    """Rescale the layers of all pairs in place; the outputs of the graph do not change.

    Args:
        graph: the graph that the pairs belong to.
        pairs: the pairs to equalize.
        values: by name of a pair, the largest magnitude of every channel of the tensor between its layers,
            shape ``[channels]``; pairs may be missing.
    """
    import torch

    # The kernel positions of a weight share one channel, so only their largest magnitude matters.
    tables = {
        layer.name: layer.weight(graph).double().abs().flatten(2).amax(2)
        if layer.weight(graph).dim() > 2
        else layer.weight(graph).double().abs()
        for pair in pairs
        for layer in (pair.first, pair.second)
    }
    total = {pair.name: torch.ones(len(tables[pair.first.name]), dtype=torch.double) for pair in pairs}
    before = [_spread(pair, tables) for pair in pairs]
    # The iteration runs on the small tables; weights are rescaled once, so rounding does not accumulate.
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            scale = _scale(pair, tables, values.get(pair.name), total[pair.name])
            tables[pair.first.name] = tables[pair.first.name] / scale[:, None]
            tables[pair.second.name] = tables[pair.second.name] * _scale_per_weight(pair, scale)
            total[pair.name] = total[pair.name] * scale
            moved = max(moved, float(scale.log().abs().max()))
        if moved < CONVERGED:
            break
    for pair in pairs:
        _apply(graph, pair, total[pair.name])
    return [Equalized(pair, old, _spread(pair, tables)) for pair, old in zip(pairs, before, strict=True)]


def _scale(
    pair: Pair,
    tables: "Mapping[str, torch.Tensor]",
    values: "torch.Tensor | None",
    total: "torch.Tensor",
) -> "torch.Tensor":
    """Factors by which to divide the channels of a pair in this sweep."""
    import torch

    produced = tables[pair.first.name].amax(1)
    read = _read_ranges(pair, tables[pair.second.name], len(produced))
    if values is not None:
        now = values / total
        # Dead channels have no ratio of values to weights, and would distort the quantile.
        live = (produced > ABSENT * produced.max()) & (now > 0)
        if live.any():
            unit = torch.quantile(now[live] / produced[live], TYPICAL)
            produced = torch.maximum(produced, now / unit)
    # A channel that nothing produces or reads would get an infinite or zero factor.
    used = (produced > ABSENT * produced.max()) & (read > ABSENT * read.max())
    return torch.where(used, torch.sqrt(produced / read.clamp_min(1e-300)), torch.ones_like(produced))


def _read_ranges(pair: Pair, table: "torch.Tensor", channels: int) -> "torch.Tensor":
    """Largest weight of ``second`` that reads each channel; 0 for channels without readers."""
    import torch

    which = pair.readers.flatten()
    real = which != PADDING
    empty = torch.zeros(channels, dtype=table.dtype)
    return empty.scatter_reduce(0, which[real], table.flatten()[real], "amax")


def _scale_per_weight(pair: Pair, scale: "torch.Tensor") -> "torch.Tensor":
    """Scale of the channel that each weight of ``second`` reads: shape ``[outputs, inputs / groups]``."""
    import torch

    return torch.where(pair.readers == PADDING, torch.ones(()).double(), scale[pair.readers.clamp_min(0)])


def _spread(pair: Pair, tables: "Mapping[str, torch.Tensor]") -> float:
    """Ratio of the largest to the smallest channel range, on the worse side of the pair."""
    produced = tables[pair.first.name].amax(1)
    spreads = [1.0]
    for ranges in (produced, _read_ranges(pair, tables[pair.second.name], len(produced))):
        live = ranges[ranges > ABSENT * ranges.max()]
        if len(live):
            spreads.append(float(live.max() / live.min()))
    return max(spreads)


def _apply(graph: "GraphModule", pair: Pair, scale: "torch.Tensor") -> None:
    """Divide the outputs of the first layer, bias included, and multiply the inputs of the second."""
    first, second = pair.first, pair.second
    weight = first.weight(graph).double()
    first.set_weight(graph, weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
    if first.node.args[2] is not None:
        first.set_bias(graph, first.bias(graph).double() / scale)
    # The bias of the second layer is added after its inputs, so it does not change.
    weight = second.weight(graph).double()
    factor = _scale_per_weight(pair, scale)
    second.set_weight(graph, weight * factor.reshape(*factor.shape, *[1] * (weight.dim() - 2)))
