"""Unstructured pruning of a PyTorch module, by magnitude or with N:M sparsity."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from edgeopt.errors import StageError
from edgeopt.formats.torch.prune.counting import is_depthwise, weighted
from edgeopt.formats.torch.prune.masks import Keeps, smallest

if TYPE_CHECKING:
    import torch


def prune_by_magnitude(
    module: "torch.nn.Module", shares: Mapping[str, float], scope: Literal["layer", "global"]
) -> Keeps:
    """Set the smallest weights of layers to zero, in place.

    Args:
        module: the module to prune.
        shares: layer name -> fraction of its weights to remove.
        scope: ``layer`` removes that fraction from each layer; ``global`` removes the same total number of
            weights, the smallest of all layers.

    Returns:
        The constraints on further training.

    Raises:
        StageError: a layer would lose all of its weights.
    """
    import torch

    layers = {name: layer for name, layer in weighted(module).items() if shares.get(name, 0) > 0}
    if scope == "global" and layers:
        # One threshold for all layers, found on the concatenation of their weights.
        every = torch.cat([layer.weight.detach().flatten() for layer in layers.values()])
        count = sum(round(shares[name] * layer.weight.numel()) for name, layer in layers.items())
        removed = torch.split(
            smallest(every, count / len(every)), [layer.weight.numel() for layer in layers.values()]
        )
        masks = {
            name: mask.view_as(layer.weight)
            for (name, layer), mask in zip(layers.items(), removed, strict=True)
        }
    else:
        masks = {name: smallest(layer.weight, shares[name]) for name, layer in layers.items()}
    for name, mask in masks.items():
        if bool(mask.all()):
            raise StageError(
                f"layer {name} would lose all of its {mask.numel()} weights",
                fix=f"remove a smaller fraction, or exclude the layer: keep: [{name}]"
                + (", or set scope: layer" if scope == "global" else ""),
            )
        with torch.no_grad():
            layers[name].weight.masked_fill_(mask, 0.0)
    return {f"{name}.weight": {"kind": "zeros"} for name in layers}


def prune_n_m(module: "torch.nn.Module", names: list[str], n: int, m: int) -> tuple[Keeps, list[str]]:
    """Keep the ``n`` largest of every ``m`` weights along the input channels, in place.

    Source: Mishra et al. 2021 (arXiv:2104.08378). Layers whose input channels are not a multiple of ``m``,
    such as most first layers and all depthwise ones, stay dense.

    Returns:
        The constraints on further training, and the layers that stay dense.
    """
    import torch

    keeps: Keeps = {}
    dense = []
    for name in names:
        layer = weighted(module)[name]
        weight = layer.weight
        if is_depthwise(layer) or weight.shape[1] % m:
            dense.append(name)
            continue
        with torch.no_grad():
            # Sparse kernels expect the m consecutive values along the axis that they accumulate over.
            blocks = weight.movedim(1, -1).reshape(-1, m)
            order = blocks.abs().sort(dim=1, stable=True).indices
            mask = torch.ones_like(blocks).scatter_(1, order[:, : m - n], 0.0)
            pruned = (blocks * mask).reshape(weight.movedim(1, -1).shape).movedim(-1, 1)
            weight.copy_(pruned)
        keeps[f"{name}.weight"] = {"kind": "n_m", "n": n, "m": m}
    return keeps, dense
