"""Importance of the channels of a PyTorch module, and how many of them to keep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.torch.prune.channels import Group
from edgeopt.formats.torch.prune.counting import Counts, is_depthwise

if TYPE_CHECKING:
    import torch

Importance: TypeAlias = dict[str, NDArray[np.float64]]
"""Group name -> one score per channel."""

DRAWS = 4
"""Random directions of the outputs per sample."""


def by_outputs(
    module: "torch.nn.Module", groups: Sequence[Group], batches: Iterable[tuple[Any, ...]]
) -> Importance:
    """First-order estimate of the mean squared change of the model's outputs without a channel.

    The change is the product of the values read and the gradient of the output with respect to them
    (Molchanov et al. 2017, arXiv:1611.06440), summed over all layers that read the channel. The gradient
    is taken along random directions of the output instead of a loss: this needs no labels, and samples that
    the model predicts with confidence count as well. Scores of different groups are comparable. Of several
    outputs, each counts relative to its own power.

    Args:
        module: the module, in evaluation mode.
        groups: the groups of channels to score.
        batches: input tensors, batch axis first.
    """
    import torch
    from torch.utils import _pytree

    inputs_of: dict[str, Any] = {}
    handles = []

    def watch(name: str) -> None:
        def keep(_: Any, arguments: Any) -> Any:
            # A clone per reader, so that its gradient excludes the other readers of the same tensor.
            inputs_of[name] = arguments[0].clone().requires_grad_()
            return (inputs_of[name], *arguments[1:])

        handles.append(module.get_submodule(name).register_forward_pre_hook(keep))

    for name in {name for group in groups for name in group.readers}:
        watch(name)
    totals = {group.name: np.zeros(group.channels) for group in groups}
    samples = 0
    generator = torch.Generator().manual_seed(0)
    try:
        for values in batches:
            outputs = [value for value in _pytree.tree_leaves(module(*values)) if value.requires_grad]
            scales = [_scale(value) if len(outputs) > 1 else 1.0 for value in outputs]
            for draw in range(DRAWS):
                # E over v ~ N(0, I) of (v^T J dx)^2 is |J dx|^2: the squared change over all outputs, from a
                # few vector-Jacobian products.
                directions = [
                    torch.randn(value.shape, generator=generator) / scale
                    for value, scale in zip(outputs, scales, strict=True)
                ]
                names = list(inputs_of)
                slopes = torch.autograd.grad(
                    outputs,
                    [inputs_of[name] for name in names],
                    directions,
                    retain_graph=draw < DRAWS - 1,
                    allow_unused=True,
                    materialize_grads=True,
                )
                changes = {
                    name: _per_input(inputs_of[name].detach() * slope, module.get_submodule(name))
                    for name, slope in zip(names, slopes, strict=True)
                }
                for group in groups:
                    totals[group.name] += _squared_sum(group, changes)
            samples += len(values[0])
            inputs_of.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(1, samples * DRAWS) for name, total in totals.items()}


def _scale(output: "torch.Tensor") -> float:
    """Root mean square of an output; never 0."""
    return max(float(output.detach().double().pow(2).mean().sqrt()), 1e-30)


def _per_input(change: "torch.Tensor", layer: Any) -> NDArray[np.float64]:
    """Sum over positions: shape ``[samples, inputs of the layer]``."""
    import torch

    if isinstance(layer, torch.nn.Linear):
        change = change.reshape(len(change), -1, change.shape[-1]).sum(1)
    elif change.ndim > 2:
        change = change.flatten(2).sum(2)
    return np.asarray(change.double().numpy(), np.float64)


def _squared_sum(group: Group, changes: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Changes summed over the readers of each channel, then squared and summed over samples."""
    total: NDArray[np.float64] | None = None
    for name, pairs in group.readers.items():
        if name not in changes:
            continue  # a layer that the forward pass does not use
        if total is None:
            total = np.zeros((len(changes[name]), group.channels))
        for channel, index in pairs:
            total[:, channel] += changes[name][:, index]
    return np.zeros(group.channels) if total is None else np.asarray((total**2).sum(axis=0))


def by_weights(module: "torch.nn.Module", groups: Sequence[Group]) -> Importance:
    """Squared L2 norm of the weights that produce a channel, relative to the mean of its group.

    Li et al. 2017 (arXiv:1608.08710). Needs no data; scores of different groups are not comparable.
    """
    scores = {}
    for group in groups:
        total = np.zeros(group.channels)
        for name, indices in group.producers.items():
            weight = getattr(module.get_submodule(name), "weight", None)
            # Weights of normalizations have one axis, and do not count.
            if weight is not None and weight.ndim > 1:
                norms = weight.detach().double().pow(2).flatten(1).sum(1).numpy()
                total += norms[np.asarray(indices)]
        scores[group.name] = total / max(float(total.mean()), 1e-30)
    return scores


def kept_channels(channels: int, share: float, round_to: int) -> int:
    """Number of channels to keep when a fraction is removed: a multiple of ``round_to``, at least one.

    A group with fewer channels than ``round_to`` keeps all of them.
    """
    exact = channels * (1 - share)
    # Half up, not to even as round() does: neighbouring layers should be treated alike.
    rounded = max(round_to, math.floor(exact / round_to + 0.5) * round_to)
    return min(channels, rounded)


def meet_mac_target(
    groups: Sequence[Group],
    movable: Sequence[Group],
    kept: Mapping[str, int],
    importance: Importance,
    counts: Counts,
    layers: Mapping[str, Any],
    *,
    target: float,
    round_to: int,
) -> dict[str, int]:
    """Number of channels to keep in each group so that at most ``target`` MACs remain.

    Greedy: each step removes ``round_to`` channels from the ``movable`` group with the smallest loss of
    importance per MAC saved. If the target is out of reach, all movable groups end at ``round_to`` channels.

    Args:
        groups: all groups of the module.
        movable: the groups to remove channels from.
        kept: group name -> number of channels to start from.
        importance: scores that are comparable between groups.
        counts: MACs of the whole module.
        layers: layer name -> module.
        target: MACs to reach.
        round_to: number of channels that each step removes.
    """
    kept = dict(kept)
    ranked = {group.name: np.sort(importance[group.name]) for group in movable}
    current = remaining(groups, kept, counts, layers)
    while current > target:
        best: tuple[float, str, int, float] | None = None
        for group in movable:
            now = kept[group.name]
            after = max(round_to, (math.ceil(now / round_to) - 1) * round_to)
            if after >= now:
                continue
            reduced = remaining(groups, kept | {group.name: after}, counts, layers)
            # The least important channels go first: those before now are removed already.
            removed = ranked[group.name][group.channels - now : group.channels - after]
            cost = float(removed.sum()) / max(1e-9, current - reduced)
            if best is None or cost < best[0]:
                best = cost, group.name, after, reduced
        if best is None:
            break
        kept[best[1]], current = best[2], best[3]
    return kept


def remaining(
    groups: Sequence[Group], kept: Mapping[str, int], counts: Counts, layers: Mapping[str, Any]
) -> float:
    """MACs that remain with ``kept`` channels in each group."""
    # Fractions of the outputs and inputs of each layer; its MACs are proportional to their product.
    outputs_kept = dict.fromkeys(counts.macs, 1.0)
    inputs_kept = dict.fromkeys(counts.macs, 1.0)
    for group in groups:
        share = kept[group.name] / group.channels
        for name, indices in group.producers.items():
            if name in outputs_kept:
                # A layer whose output is split produces the channels of several groups.
                part = len(indices) / layers[name].weight.shape[0]
                outputs_kept[name] -= part * (1 - share)
        for name, pairs in group.readers.items():
            # A depthwise layer has one input per output, which the outputs already account for.
            if name in inputs_kept and not is_depthwise(layers[name]):
                inputs_kept[name] -= len(pairs) / _inputs(layers[name]) * (1 - share)
    return sum(macs * outputs_kept[name] * inputs_kept[name] for name, macs in counts.macs.items())


def _inputs(layer: Any) -> int:
    width: int = getattr(layer, "in_channels", None) or layer.in_features
    return width
