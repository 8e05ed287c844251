"""Parameters and multiplications of a PyTorch module, layer by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch


class Counts(NamedTuple):
    """What a module costs. ``macs`` is per layer, for one sample."""

    parameters: int
    macs: dict[str, int]

    @property
    def total(self) -> int:
        """Multiply-accumulates of one sample."""
        return sum(self.macs.values())


def count(module: "torch.nn.Module", inputs: Sequence[TensorSpec]) -> Counts:
    """Run zeros of batch 1 through a module and count what convolutions and linear layers do."""
    macs: dict[str, int] = {}
    handles = []

    def watch(name: str, layer: Any) -> None:
        def note(_: Any, __: Any, output: Any) -> None:
            each = layer.weight[0].numel()
            if type(layer).__name__.startswith("ConvTranspose"):
                # Every value that goes in is multiplied with the kernels of all that it adds to.
                output = __[0]
            macs[name] = macs.get(name, 0) + output.numel() * each

        handles.append(layer.register_forward_hook(note))

    for name, layer in weighted(module).items():
        watch(name, layer)
    try:
        torch_engine.run(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Counts(sum(parameter.numel() for parameter in module.parameters()), macs)


def weighted(module: "torch.nn.Module") -> dict[str, Any]:
    """Convolutions and linear layers by name, in the order in which the module holds them."""
    import torch

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def is_depthwise(layer: Any) -> bool:
    """Whether each channel has kernels of its own."""
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == layer.in_channels)
