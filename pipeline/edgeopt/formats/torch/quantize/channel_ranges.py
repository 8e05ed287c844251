"""Per-channel ranges of the tensors of a graph, over any number of samples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule


def channel_ranges(
    graph: "GraphModule", axes: Mapping[Any, int], samples: "Iterable[Sequence[torch.Tensor]]"
) -> "dict[Any, torch.Tensor]":
    """Largest magnitude of every channel of the given nodes.

    Args:
        graph: the graph, which is run once per sample.
        axes: nodes, with the channel axis of each.
        samples: inputs of batch 1.

    Returns:
        Per node a float64 tensor of shape ``[channels]``.
    """
    import torch

    ranges: dict[Any, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if n in axes:
                rows = value.double().abs().movedim(axes[n], 0)
                largest = rows.reshape(rows.shape[0], -1).amax(1)
                ranges[n] = torch.maximum(ranges[n], largest) if n in ranges else largest
            return value

    recorder = Recorder(graph)
    with torch.no_grad():
        for sample in samples:
            recorder.run(*sample)
    return ranges
