"""AdaRound: round each weight up or down, whichever keeps the layer's output, not to the nearest.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv:2004.10568). A variable
per weight, passed through a rectified sigmoid, says how far it is rounded up; gradient descent on the
squared error of the layer's output, and a regularizer whose power is annealed, push it to 0 or 1. The inputs
are those of the model with all layers before rounded, the outputs those of the float model.

The paper estimates the gradient from batches of samples. The error is a quadratic form of the weights, so
here the gradient of all samples at once comes from their second moments: less noise, and a thousand steps
in a second. Afterwards single weights are turned over while that lowers the error, so the result is never
worse than rounding to nearest on the samples it was learned from.
"""

from typing import TYPE_CHECKING, NamedTuple

from edgeopt.formats.torch.quantize import grid as torch_grid
from edgeopt.formats.torch.quantize.moments import Moments

if TYPE_CHECKING:
    import torch

LOW, HIGH = -0.1, 1.1
"""How far the sigmoid is stretched before it is rectified (section 3.2 of the paper)."""

WARM_UP = 0.2
"""Share of the steps without regularizer."""

BETA = 20.0, 2.0
"""The regularizer's power, from first to last."""

PULL = 1.0
"""Weight of the regularizer, against a layer's error in units of that of rounding to nearest."""

RATE = 0.05
"""Step size of Adam."""

CLIPS = tuple(1.0 - 0.02 * step for step in range(26))
"""Shares of the largest weight that the scale is tried with."""


class Rounded(NamedTuple):
    """Weights on the grid: ``codes * scale``. Errors are means over outputs, relative to their power."""

    codes: "torch.Tensor"
    scale: "torch.Tensor"
    nearest: float
    learned: float


class _Choice(NamedTuple):
    """Every weight is ``(down + 0 or 1) * scale``; all but ``scale`` ``[groups, outputs, features]``."""

    down: "torch.Tensor"
    part: "torch.Tensor"
    """How far the weight lies above ``down``, 0 to 1."""
    fixed: "torch.Tensor"
    """Weights at the end of the grid, which stay there."""
    scale: "torch.Tensor"

    @property
    def nearest(self) -> "torch.Tensor":
        return (self.part >= 0.5).float()

    def weights(self, up: "torch.Tensor") -> "torch.Tensor":
        return (self.down + up) * self.scale


def round_weights(
    weight: "torch.Tensor", moments: Moments, *, bits: int, per_channel: bool, clip: bool, steps: int
) -> Rounded:
    """Learn the rounding of one layer.

    Args:
        weight: ``[groups, outputs, features]``.
        moments: of the same layer.
        bits: of the signed integers.
        per_channel: one scale per output instead of one.
        clip: try smaller scales than the largest weight's, where that keeps the output better.
        steps: of gradient descent.
    """
    import torch

    top = torch_grid.largest(bits)
    full = torch_grid.scales(weight.flatten(0, 1), bits, per_channel).reshape(*weight.shape[:2], 1)
    scale = _clipped(weight, moments, full, top, per_channel) if clip else full
    position = weight / scale
    # What the scale comes from stays the largest, so that whoever quantizes the file finds the same scale.
    fixed = position.abs() >= top * (1 - 1e-6)
    down = torch.clamp(torch.floor(position), -top, top - 1)
    part = torch.where(fixed, (position > 0).float(), (position - down).clamp(0, 1))
    choice = _Choice(down, part, fixed, scale)
    found = [_turned_over(choice, up, moments) for up in (_descend(choice, moments, steps), choice.nearest)]
    errors = [moments.errors(choice.weights(up)) for up in found]
    best = torch.where((errors[0] <= errors[1])[..., None], *found)
    plain = torch_grid.nearest(weight.flatten(0, 1), bits, per_channel).reshape(weight.shape)
    power = float(moments.power.mean().clamp_min(1e-30))
    nearest, learned = (moments.errors(values).mean() for values in (plain, choice.weights(best)))
    return Rounded(down + best, scale, float(nearest) / power, float(learned) / power)


def _clipped(
    weight: "torch.Tensor", moments: Moments, full: "torch.Tensor", top: int, per_channel: bool
) -> "torch.Tensor":
    """The scale, not above ``full``, with which rounding to nearest keeps the output best."""
    import torch

    best, least = full, torch.full(full.shape[:2], float("inf"))
    for share in CLIPS:
        scale = full * share
        error = moments.errors(torch.clamp(torch.round(weight / scale), -top, top) * scale)
        if not per_channel:
            error = error.sum().expand(error.shape)
        best = torch.where((error < least)[..., None], scale, best)
        least = torch.minimum(error, least)
    return best


def _descend(choice: _Choice, moments: Moments, steps: int) -> "torch.Tensor":
    """Gradient descent on how far each weight is rounded up; 0 or 1 each."""
    import torch

    if not steps:
        return choice.nearest
    floor = max(1e-12 * float(moments.power.max()), 1e-30)
    unit = moments.errors(choice.weights(choice.nearest))[..., None].clamp_min(floor)
    inside = (choice.part.clamp(0.01, 0.99) - LOW) / (HIGH - LOW)
    with torch.enable_grad():
        variable = torch.log(inside / (1 - inside)).requires_grad_()
        adam = torch.optim.Adam([variable], lr=RATE)
        for step in range(steps):
            up = torch.clamp(torch.sigmoid(variable) * (HIGH - LOW) + LOW, 0, 1)
            with torch.no_grad():
                now = choice.weights(torch.where(choice.fixed, choice.part, up))
                slope = 2 * (moments.times(now) - moments.cross) * choice.scale / unit
            loss = (up * slope).sum()
            rest = (1 - step / steps) / (1 - WARM_UP)
            if rest <= 1:
                beta = BETA[1] + (BETA[0] - BETA[1]) * rest
                loss = loss + PULL * (1 - (2 * up - 1).abs().pow(beta)).sum() / up.shape[2]
            adam.zero_grad()
            loss.backward()
            adam.step()
    return torch.where(choice.fixed, choice.part, (variable.detach() >= 0).float())


def _turned_over(choice: _Choice, up: "torch.Tensor", moments: Moments) -> "torch.Tensor":
    """Turn over one weight per output at a time, the one that lowers the error most, while any does."""
    import torch

    if moments.matrix is None:
        return up  # without the matrix each turn would cost as much as a step of gradient descent
    matrix, scale = moments.matrix, choice.scale
    curve = torch.diagonal(matrix, dim1=1, dim2=2)[:, None, :] * scale.square()
    slope = 2 * (moments.times(choice.weights(up)) - moments.cross)
    groups = torch.arange(len(up))[:, None]
    up = up.clone()
    for _ in range(2 * up.shape[2]):
        turn = 1 - 2 * up
        gain = (turn * slope * scale + curve).masked_fill(choice.fixed, 0)
        least, place = gain.min(2, keepdim=True)
        if not bool((least < 0).any()):
            break
        by = torch.where(least < 0, turn.gather(2, place), torch.zeros(()))
        up.scatter_add_(2, place, by)
        slope = slope + 2 * (by * scale) * matrix[groups, place[..., 0]]
    return up
