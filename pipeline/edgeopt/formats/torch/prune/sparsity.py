"""Setting weights of a PyTorch module to zero: by magnitude, or n of every m."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from edgeopt.errors import StageError
from edgeopt.formats.torch.prune.counting import is_depthwise, weighted
from edgeopt.formats.torch.prune.masks import Keeps, smallest

if TYPE_CHECKING:
    import torch


def thin(module: "torch.nn.Module", shares: Mapping[str, float], scope: Literal["layer", "global"]) -> Keeps:
    """Set the smallest weights of layers to zero, in place.

    Args:
        module: whose weights.
        shares: name of a layer -> share of its weights to remove.
        scope: ``layer`` removes that share of each layer; ``global`` removes as many weights in all, wherever
            they are smallest.

    Raises:
        StageError: a layer would be left without any weight.
    """
    import torch

    layers = {name: layer for name, layer in weighted(module).items() if shares.get(name, 0) > 0}
    if scope == "global" and layers:
        every = torch.cat([layer.weight.detach().flatten() for layer in layers.values()])
        count = sum(round(shares[name] * layer.weight.numel()) for name, layer in layers.items())
        gone = torch.split(
            smallest(every, count / len(every)), [layer.weight.numel() for layer in layers.values()]
        )
        masks = {
            name: mask.view_as(layer.weight) for (name, layer), mask in zip(layers.items(), gone, strict=True)
        }
    else:
        masks = {name: smallest(layer.weight, shares[name]) for name, layer in layers.items()}
    for name, mask in masks.items():
        if bool(mask.all()):
            raise StageError(
                f"layer {name} would lose all of its {mask.numel()} weights",
                fix=f"ask for less, or leave it out: keep: [{name}]"
                + (", or set scope: layer" if scope == "global" else ""),
            )
        with torch.no_grad():
            layers[name].weight.masked_fill_(mask, 0.0)
    return {f"{name}.weight": {"kind": "zeros"} for name in layers}


def thin_in_blocks(module: "torch.nn.Module", names: list[str], n: int, m: int) -> tuple[Keeps, list[str]]:
    """Keep the ``n`` largest of every ``m`` weights along the input channels, in place.

    Mishra et al. 2021 (arXiv:2104.08378). Layers whose input channels are no multiple of ``m``, such as most
    first ones and depthwise ones, stay dense.

    Returns:
        What was thinned, and the layers that stay dense.
    """
    import torch

    kept: Keeps = {}
    dense = []
    for name in names:
        layer = weighted(module)[name]
        weight = layer.weight
        if is_depthwise(layer) or weight.shape[1] % m:
            dense.append(name)
            continue
        with torch.no_grad():
            blocks = weight.movedim(1, -1).reshape(-1, m)
            order = blocks.abs().sort(dim=1, stable=True).indices
            mask = torch.ones_like(blocks).scatter_(1, order[:, : m - n], 0.0)
            thinned = (blocks * mask).reshape(weight.movedim(1, -1).shape).movedim(-1, 1)
            weight.copy_(thinned)
        kept[f"{name}.weight"] = {"kind": "n_m", "n": n, "m": m}
    return kept, dense
