"""The largest values that channels of a graph's tensors take, over any number of samples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule


def channel_ranges(
    graph: "GraphModule", axes: Mapping[Any, int], samples: "Iterable[Sequence[torch.Tensor]]"
) -> "dict[Any, torch.Tensor]":
    """The largest magnitude of every channel of some nodes.

    Args:
        graph: is run once per sample.
        axes: the nodes, and the axis of the channels of each.
        samples: inputs of batch 1.

    Returns:
        Per node, float64 of shape ``[channels]``.
    """
    import torch

    found: dict[Any, torch.Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if n in axes:
                rows = value.double().abs().movedim(axes[n], 0)
                most = rows.reshape(rows.shape[0], -1).amax(1)
                found[n] = torch.maximum(found[n], most) if n in found else most
            return value

    watch = Watch(graph)
    with torch.no_grad():
        for sample in samples:
            watch.run(*sample)
    return found
