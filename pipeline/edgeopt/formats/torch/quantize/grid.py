"""The grid of integers that symmetric quantization puts weights on, as the formats' quantizers do it.

Scale is the largest magnitude divided by the largest integer, per output channel or per tensor; zero is
exact, and the integers are ``-largest .. largest``: the TFLite 8-bit specification, onnxruntime's symmetric
weights, XNNPACK's.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOW, HIGH = 4, 8
"""Widths of integers, in bits, that weights may be rounded to."""


def largest(bits: int) -> int:
    """127 for 8 bits."""
    return int(2 ** (bits - 1)) - 1


def scales(weight: "torch.Tensor", bits: int, per_channel: bool) -> "torch.Tensor":
    """Shape ``[outputs, 1, ...]``, to be broadcast; where all weights are zero, 1."""
    import torch

    magnitudes = weight.abs().reshape(weight.shape[0], -1).amax(1)
    if not per_channel:
        magnitudes = magnitudes.amax().expand(weight.shape[0])
    found = magnitudes / largest(bits)
    found = torch.where(found > 0, found, torch.ones_like(found))
    return found.reshape(-1, *[1] * (weight.dim() - 1))


def nearest(weight: "torch.Tensor", bits: int, per_channel: bool) -> "torch.Tensor":
    """The weights, each rounded to the nearest point of the grid."""
    import torch

    scale = scales(weight, bits, per_channel)
    top = largest(bits)
    return torch.clamp(torch.round(weight / scale), -top, top) * scale
