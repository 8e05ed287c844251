"""Parameter and MAC counts of a PyTorch module, layer by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch


class Counts(NamedTuple):
    """Number of parameters of a module, and the MACs of each layer for one sample."""

    parameters: int
    macs: dict[str, int]

    @property
    def total(self) -> int:
        """MACs of all layers for one sample."""
        return sum(self.macs.values())


def count(module: "torch.nn.Module", inputs: Sequence[TensorSpec]) -> Counts:
    """Count parameters and the MACs of convolutions and linear layers, by a run on zeros at batch 1.

    Source: a layer's MACs are its outputs times the weights per output.
    """
    macs: dict[str, int] = {}
    handles = []

    def watch(name: str, layer: Any) -> None:
        def record(_: Any, arguments: Any, output: Any) -> None:
            each = layer.weight[0].numel()
            if type(layer).__name__.startswith("ConvTranspose"):
                # Here every input value is multiplied by the kernels of all outputs: the roles swap.
                output = arguments[0]
            # Accumulated, because a layer may be called several times.
            macs[name] = macs.get(name, 0) + output.numel() * each

        handles.append(layer.register_forward_hook(record))

    for name, layer in weighted(module).items():
        watch(name, layer)
    try:
        torch_engine.run(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Counts(sum(parameter.numel() for parameter in module.parameters()), macs)


def weighted(module: "torch.nn.Module") -> dict[str, Any]:
    """Convolutions and linear layers by name, in the order of ``named_modules``."""
    import torch

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution has one group per input channel."""
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == layer.in_channels)
