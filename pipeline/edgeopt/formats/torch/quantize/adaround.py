"""AdaRound: round each weight up or down so that the error of the layer's output is minimal.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv:2004.10568). One variable
per weight, passed through a rectified sigmoid, is the fraction by which it is rounded up. Gradient descent
on the squared error of the layer's output, plus a regularizer with an annealed exponent, drives it to 0 or
1. The inputs come from the model with all preceding layers rounded, the target outputs from the float model.

The paper estimates the gradient from mini-batches. The error is a quadratic form of the weights, so this
implementation computes the gradient over all samples from their second moments: without sampling noise, and
at a thousand steps per second. A greedy search then flips single weights while this reduces the error, so on
the calibration samples the result is never worse than rounding to nearest.
"""

from typing import TYPE_CHECKING, NamedTuple

from edgeopt.formats.torch.quantize import grid as torch_grid
from edgeopt.formats.torch.quantize.moments import Moments

if TYPE_CHECKING:
    import torch

GAMMA, ZETA = -0.1, 1.1
"""Limits to which the sigmoid is stretched before it is rectified (section 3.2 of the paper)."""

WARM_UP = 0.2
"""Fraction of the steps without regularizer."""

BETA = 20.0, 2.0
"""Exponent of the regularizer, annealed from the first to the second value."""

REGULARIZER = 1.0
"""Weight of the regularizer; the layer's error is measured relative to that of rounding to nearest."""

LEARNING_RATE = 0.05
"""Learning rate of Adam."""

CLIP_FRACTIONS = tuple(1.0 - 0.02 * step for step in range(26))
"""Fractions of the largest weight from which candidate scales are computed."""


class Rounded(NamedTuple):
    """Quantized weights ``codes * scale``, with the errors of rounding to nearest and of learned rounding.

    Errors are mean squared errors over all outputs, relative to the mean power of the outputs.
    """

    codes: "torch.Tensor"
    scale: "torch.Tensor"
    nearest: float
    learned: float


class _Problem(NamedTuple):
    """The search space: every weight is ``(down + 0 or 1) * scale``.

    Shapes are ``[groups, outputs, features]``, and ``[groups, outputs, 1]`` for ``scale``.
    """

    down: "torch.Tensor"
    fraction: "torch.Tensor"
    """Distance of the weight from ``down`` in steps, 0 to 1."""
    fixed: "torch.Tensor"
    """Mask of weights at the limits of the grid, which are not varied."""
    scale: "torch.Tensor"

    @property
    def nearest(self) -> "torch.Tensor":
        return (self.fraction >= 0.5).float()

    def weights(self, up: "torch.Tensor") -> "torch.Tensor":
        return (self.down + up) * self.scale


def round_weights(
    weight: "torch.Tensor", moments: Moments, *, bits: int, per_channel: bool, clip: bool, steps: int
) -> Rounded:
    """Learn the rounding of one layer.

    Args:
        weight: shape ``[groups, outputs, features]``.
        moments: second moments of the layer's inputs and outputs.
        bits: width of the signed integers.
        per_channel: use one scale per output channel instead of one per tensor.
        clip: also try scales below that of the largest weight.
        steps: number of gradient descent steps.
    """
    import torch

    top = torch_grid.largest(bits)
    full = torch_grid.scales(weight.flatten(0, 1), bits, per_channel).reshape(*weight.shape[:2], 1)
    scale = _search_scale(weight, moments, full, top, per_channel) if clip else full
    position = weight / scale
    # The largest weight stays at the limit of the grid: a quantizer that reads the file derives the scale
    # from it, and must obtain the same one.
    fixed = position.abs() >= top * (1 - 1e-6)
    down = torch.clamp(torch.floor(position), -top, top - 1)
    fraction = torch.where(fixed, (position > 0).float(), (position - down).clamp(0, 1))
    problem = _Problem(down, fraction, fixed, scale)
    # Rounding to nearest is the second start, so the result is never worse. The better one is taken for
    # each output: no two outputs share a weight.
    starts = (_descend(problem, moments, steps), problem.nearest)
    candidates = [_flip_greedily(problem, up, moments) for up in starts]
    errors = [moments.errors(problem.weights(up)) for up in candidates]
    best = torch.where((errors[0] <= errors[1])[..., None], *candidates)
    plain = torch_grid.nearest(weight.flatten(0, 1), bits, per_channel).reshape(weight.shape)
    power = float(moments.power.mean().clamp_min(1e-30))
    nearest, learned = (moments.errors(values).mean() for values in (plain, problem.weights(best)))
    return Rounded(down + best, scale, float(nearest) / power, float(learned) / power)


def _search_scale(
    weight: "torch.Tensor", moments: Moments, full: "torch.Tensor", top: int, per_channel: bool
) -> "torch.Tensor":
    """The scale up to ``full`` with the smallest output error when rounding to nearest."""
    import torch

    best, least = full, torch.full(full.shape[:2], float("inf"))
    for clip_fraction in CLIP_FRACTIONS:
        scale = full * clip_fraction
        error = moments.errors(torch.clamp(torch.round(weight / scale), -top, top) * scale)
        if not per_channel:
            # All outputs share one scale, so the sum of their errors decides.
            error = error.sum().expand(error.shape)
        best = torch.where((error < least)[..., None], scale, best)
        least = torch.minimum(error, least)
    return best


def _descend(problem: _Problem, moments: Moments, steps: int) -> "torch.Tensor":
    """Minimize the output error by gradient descent on the fractions; return 0 or 1 for each weight."""
    import torch

    if not steps:
        return problem.nearest
    floor = max(1e-12 * float(moments.power.max()), 1e-30)
    unit = moments.errors(problem.weights(problem.nearest))[..., None].clamp_min(floor)
    # The inverse of the rectified sigmoid at the weight's own fraction: the start is the float weight.
    inside = (problem.fraction.clamp(0.01, 0.99) - GAMMA) / (ZETA - GAMMA)
    with torch.enable_grad():
        variable = torch.log(inside / (1 - inside)).requires_grad_()
        adam = torch.optim.Adam([variable], lr=LEARNING_RATE)
        for step in range(steps):
            up = torch.clamp(torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA, 0, 1)
            with torch.no_grad():
                now = problem.weights(torch.where(problem.fixed, problem.fraction, up))
                # Analytic gradient of the quadratic error; weights at the limits have their fixed value.
                slope = 2 * (moments.times(now) - moments.cross) * problem.scale / unit
            # A linear function with that gradient: autograd adds only the derivative of the sigmoid.
            loss = (up * slope).sum()
            remaining = (1 - step / steps) / (1 - WARM_UP)
            if remaining <= 1:
                # A large exponent first leaves the fractions free; the smaller ones push them to 0 or 1.
                beta = BETA[1] + (BETA[0] - BETA[1]) * remaining
                loss = loss + REGULARIZER * (1 - (2 * up - 1).abs().pow(beta)).sum() / up.shape[2]
            adam.zero_grad()
            loss.backward()
            adam.step()
    return torch.where(problem.fixed, problem.fraction, (variable.detach() >= 0).float())


def _flip_greedily(problem: _Problem, up: "torch.Tensor", moments: Moments) -> "torch.Tensor":
    """Flip one weight per output at a time, the one that reduces the error most, until none does."""
    import torch

    if moments.matrix is None:
        return up  # without the matrix, each flip would cost as much as a gradient step
    matrix, scale = moments.matrix, problem.scale
    # A flip by +-1 changes the error by +-slope * scale + curvature: exact, as the error is quadratic.
    curvature = torch.diagonal(matrix, dim1=1, dim2=2)[:, None, :] * scale.square()
    slope = 2 * (moments.times(problem.weights(up)) - moments.cross)
    groups = torch.arange(len(up))[:, None]
    up = up.clone()
    # The bound guards against cycles from float rounding.
    for _ in range(2 * up.shape[2]):
        flip = 1 - 2 * up
        change = (flip * slope * scale + curvature).masked_fill(problem.fixed, 0)
        least, place = change.min(2, keepdim=True)
        if not bool((least < 0).any()):
            break
        by = torch.where(least < 0, flip.gather(2, place), torch.zeros(()))
        up.scatter_add_(2, place, by)
        # One row of the matrix updates the slope of the output: no full product per flip.
        slope = slope + 2 * (by * scale) * matrix[groups, place[..., 0]]
    return up
