"""The integer grid of symmetric weight quantization, shared by the quantizers of all formats.

The scale is the largest magnitude divided by the largest integer, per output channel or per tensor. Zero is
exact, and integers range from ``-largest`` to ``largest``. Sources: the TFLite 8-bit quantization
specification, and the symmetric weights of onnxruntime and XNNPACK.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOW, HIGH = 4, 8
"""Smallest and largest supported bit width of weights."""


def largest(bits: int) -> int:
    """Largest integer of the grid: 127 for 8 bits."""
    return int(2 ** (bits - 1)) - 1


def scales(weight: "torch.Tensor", bits: int, per_channel: bool) -> "torch.Tensor":
    """Weight scales, shape ``[outputs, 1, ...]`` for broadcasting; 1 where all weights are zero."""
    import torch

    magnitudes = weight.abs().reshape(weight.shape[0], -1).amax(1)
    if not per_channel:
        magnitudes = magnitudes.amax().expand(weight.shape[0])
    steps = magnitudes / largest(bits)
    steps = torch.where(steps > 0, steps, torch.ones_like(steps))
    return steps.reshape(-1, *[1] * (weight.dim() - 1))


def nearest(weight: "torch.Tensor", bits: int, per_channel: bool) -> "torch.Tensor":
    """Weights rounded to the nearest point of the grid, in real units."""
    import torch

    scale = scales(weight, bits, per_channel)
    top = largest(bits)
    return torch.clamp(torch.round(weight / scale), -top, top) * scale
