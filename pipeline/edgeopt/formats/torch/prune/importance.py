"""How much each channel of a PyTorch module matters, and which to remove."""

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
"""Name of a group -> one number per channel."""

DRAWS = 4
"""Random directions of the outputs per sample."""


def by_outputs(
    module: "torch.nn.Module", groups: Sequence[Group], batches: Iterable[tuple[Any, ...]]
) -> Importance:
    """Mean squared change of the model's first output when nobody reads a channel any more, to first order.

    The change is the product of what is read and the gradient of the output with respect to it (Molchanov
    et al. 2017, arXiv:1611.06440), summed over all layers that read the channel. Here the gradient is
    taken along random directions of the output instead of a loss, so that no labels are needed, and what the
    model is sure of counts as well. Numbers of different groups can be compared.

    Args:
        module: in evaluation mode.
        groups: whose channels are weighed.
        batches: inputs as tensors, batch axis first.
    """
    import torch
    from torch.utils import _pytree

    read: dict[str, Any] = {}
    handles = []

    def watch(name: str) -> None:
        def keep(_: Any, given: Any) -> Any:
            # A value of its own, so that the gradient is that of this reader alone.
            read[name] = given[0].clone().requires_grad_()
            return (read[name], *given[1:])

        handles.append(module.get_submodule(name).register_forward_pre_hook(keep))

    for name in {name for group in groups for name in group.readers}:
        watch(name)
    totals = {group.name: np.zeros(group.channels) for group in groups}
    samples = 0
    generator = torch.Generator().manual_seed(0)
    try:
        for values in batches:
            output = _pytree.tree_leaves(module(*values))[0]
            for draw in range(DRAWS):
                direction = torch.randn(output.shape, generator=generator)
                names = list(read)
                slopes = torch.autograd.grad(
                    output, [read[name] for name in names], direction, retain_graph=draw < DRAWS - 1
                )
                changes = {
                    name: _per_input(read[name].detach() * slope, module.get_submodule(name))
                    for name, slope in zip(names, slopes, strict=True)
                }
                for group in groups:
                    totals[group.name] += _squared_sum(group, changes)
            samples += len(values[0])
            read.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(1, samples * DRAWS) for name, total in totals.items()}


def _per_input(change: "torch.Tensor", layer: Any) -> NDArray[np.float64]:
    """Summed over everything but samples and inputs of the layer."""
    import torch

    if isinstance(layer, torch.nn.Linear):
        change = change.reshape(len(change), -1, change.shape[-1]).sum(1)
    elif change.ndim > 2:
        change = change.flatten(2).sum(2)
    return np.asarray(change.double().numpy(), np.float64)


def _squared_sum(group: Group, changes: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] | None = None
    for name, pairs in group.readers.items():
        if name not in changes:
            continue  # a layer that the forward pass does not use
        if total is None:
            total = np.zeros((len(changes[name]), group.channels))
        for channel, place in pairs:
            total[:, channel] += changes[name][:, place]
    return np.zeros(group.channels) if total is None else np.asarray((total**2).sum(axis=0))


def by_weights(module: "torch.nn.Module", groups: Sequence[Group]) -> Importance:
    """Squared L2 norm of the weights that make a channel, relative to the mean of its group.

    Li et al. 2017 (arXiv:1608.08710). Needs no data; numbers of different groups are not comparable.
    """
    found = {}
    for group in groups:
        total = np.zeros(group.channels)
        for name, indices in group.makers.items():
            weight = getattr(module.get_submodule(name), "weight", None)
            if weight is not None and weight.ndim > 1:
                norms = weight.detach().double().pow(2).flatten(1).sum(1).numpy()
                total += norms[np.asarray(indices)]
        found[group.name] = total / max(float(total.mean()), 1e-30)
    return found


def kept_channels(channels: int, share: float, round_to: int) -> int:
    """How many channels stay when ``share`` of them is to go: a multiple of ``round_to``, at least one."""
    wanted = channels * (1 - share)
    rounded = max(round_to, math.floor(wanted / round_to + 0.5) * round_to)
    return min(channels, rounded)


def spend(
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
    """How many channels of each group stay so that at most ``target`` multiplications are left.

    Greedy: of all ``movable`` groups, ``round_to`` channels are removed where the outputs change least per
    multiplication saved, again and again. Where the target cannot be reached, every one of them ends at
    ``round_to`` channels.
    """
    kept = dict(kept)
    ranked = {group.name: np.sort(importance[group.name]) for group in movable}
    here = remaining(groups, kept, counts, layers)
    while here > target:
        best: tuple[float, str, int, float] | None = None
        for group in movable:
            now = kept[group.name]
            after = max(round_to, (math.ceil(now / round_to) - 1) * round_to)
            if after >= now:
                continue
            there = remaining(groups, kept | {group.name: after}, counts, layers)
            gone = ranked[group.name][group.channels - now : group.channels - after]
            price = float(gone.sum()) / max(1e-9, here - there)
            if best is None or price < best[0]:
                best = price, group.name, after, there
        if best is None:
            break
        kept[best[1]], here = best[2], best[3]
    return kept


def remaining(
    groups: Sequence[Group], kept: Mapping[str, int], counts: Counts, layers: Mapping[str, Any]
) -> float:
    """Multiplications left when only ``kept`` channels of each group stay."""
    made = dict.fromkeys(counts.macs, 1.0)
    read = dict.fromkeys(counts.macs, 1.0)
    for group in groups:
        share = kept[group.name] / group.channels
        for name, indices in group.makers.items():
            if name in made:
                # A layer may make the channels of several groups, where its output is split.
                part = len(indices) / layers[name].weight.shape[0]
                made[name] -= part * (1 - share)
        for name, pairs in group.readers.items():
            if name in read and not is_depthwise(layers[name]):
                read[name] -= len(pairs) / _inputs(layers[name]) * (1 - share)
    return sum(macs * made[name] * read[name] for name, macs in counts.macs.items())


def _inputs(layer: Any) -> int:
    width: int = getattr(layer, "in_channels", None) or layer.in_features
    return width
