"""Activations."""

from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.onnx_operators.arithmetic import number
from edgeopt.formats.torch.onnx_operators.table import operator

if TYPE_CHECKING:
    from torch import Tensor


@operator("Clip", maybe=(1, 2))
def clip(
    x: "Tensor", low: Any = None, high: Any = None, *, min: float | None = None, max: float | None = None
) -> "Tensor":
    import torch

    lower, upper = (
        given if value is None else number(value, x) for value, given in ((low, min), (high, max))
    )
    if x.is_floating_point() and not isinstance(lower, torch.Tensor) and lower == 0:
        if upper is None:
            return torch.relu(x)
        if not isinstance(upper, torch.Tensor) and upper == 6:
            return torch.nn.functional.relu6(x)
    if lower is None and upper is None:
        return x
    if isinstance(lower, torch.Tensor) != isinstance(upper, torch.Tensor) and None not in (lower, upper):
        lower, upper = torch.as_tensor(lower), torch.as_tensor(upper)
    return torch.clamp(x, lower, upper)


@operator("Elu")
def elu(x: "Tensor", *, alpha: float = 1.0) -> "Tensor":
    import torch

    return torch.nn.functional.elu(x, alpha)


@operator("Celu")
def celu(x: "Tensor", *, alpha: float = 1.0) -> "Tensor":
    import torch

    return torch.nn.functional.celu(x, alpha)


@operator("Selu")
def selu(
    x: "Tensor", *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> "Tensor":
    import torch

    return gamma * torch.nn.functional.elu(x, alpha)


@operator("LeakyRelu")
def leaky_relu(x: "Tensor", *, alpha: float = 0.01) -> "Tensor":
    import torch

    return torch.nn.functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: "Tensor", slope: "Tensor") -> "Tensor":
    import torch

    channels = x.shape[1] if x.ndim > 1 and slope.ndim else 1
    # Slopes [channels, 1, ...] are those of PyTorch, whose one slope per channel belongs to axis 1.
    per_channel = slope.numel() == channels == slope.shape[0] and slope.ndim == x.ndim - 1
    if slope.numel() == 1 or per_channel:
        return torch.nn.functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("HardSigmoid")
def hard_sigmoid(x: "Tensor", *, alpha: float = 0.2, beta: float = 0.5) -> "Tensor":
    import torch

    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return torch.nn.functional.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("HardSwish")
def hard_swish(x: "Tensor") -> "Tensor":
    import torch

    return torch.nn.functional.hardswish(x)


@operator("Mish")
def mish(x: "Tensor") -> "Tensor":
    import torch

    return torch.nn.functional.mish(x)


@operator("Softplus")
def softplus(x: "Tensor") -> "Tensor":
    import torch

    return torch.nn.functional.softplus(x)


@operator("Softsign")
def softsign(x: "Tensor") -> "Tensor":
    return x / (x.abs() + 1)


@operator("ThresholdedRelu")
def thresholded_relu(x: "Tensor", *, alpha: float = 1.0) -> "Tensor":
    return x * (x > alpha)


@operator("Shrink")
def shrink(x: "Tensor", *, bias: float = 0.0, lambd: float = 0.5) -> "Tensor":
    import torch

    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


@operator("Swish")
def swish(x: "Tensor", *, alpha: float = 1.0) -> "Tensor":
    import torch

    return torch.nn.functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@operator("Gelu")
def gelu(x: "Tensor", *, approximate: str = "none") -> "Tensor":
    import torch

    return torch.nn.functional.gelu(x, approximate=approximate)
