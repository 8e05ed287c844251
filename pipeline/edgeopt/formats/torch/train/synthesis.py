"""Inputs without data: samples that have the statistics of the batch norms of a PyTorch module."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.synthesis import NoNormsError, best_scale, chunks, rate_at
from edgeopt.model import Array
from edgeopt.plugin.synthesis import Start

if TYPE_CHECKING:
    import torch


def synthesize(
    module: "torch.nn.Module", starts: Sequence[Start], steps: int, progress: Callable[[float], None]
) -> list[Array]:
    """Change samples until the inputs of every batch norm have the mean and deviation that it recorded.

    Args:
        module: in evaluation mode; its parameters are frozen.
        starts: the samples of each input to begin with.
        steps: of gradient descent.
        progress: called with the loss of every step.

    Raises:
        StageError: the module has no batch norm that ran with these inputs.
    """
    import torch

    norms = [
        layer
        for layer in module.modules()
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    module.requires_grad_(requires_grad=False)
    losses: list[torch.Tensor] = []

    def compare(norm: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        values = arguments[0]
        axes = [axis for axis in range(values.ndim) if axis != 1]
        deviation, mean = torch.std_mean(values, axes, correction=0)
        known = norm.running_var + norm.eps
        losses.append(((mean - norm.running_mean).square() / known).mean())
        losses.append(((deviation - norm.running_var.sqrt()).square() / known).mean())

    def loss_of(inputs: Sequence[Any]) -> "torch.Tensor":
        losses.clear()
        module(*map(torch.as_tensor, inputs))
        if not losses:
            raise NoNormsError
        return torch.stack(losses).mean()

    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    try:
        parts = [_matched(part, loss_of, steps, progress) for part in chunks(starts)]
    finally:
        for hook in hooks:
            hook.remove()
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _matched(
    starts: Sequence[Start],
    loss_of: Callable[[Sequence[Any]], "torch.Tensor"],
    steps: int,
    progress: Callable[[float], None],
) -> list[Array]:
    """One batch of samples, after gradient descent with Adam (Kingma and Ba 2015, arXiv:1412.6980)."""
    import torch

    with torch.no_grad():
        scale = best_scale(starts, lambda arrays: float(loss_of(arrays)))
    inputs = [torch.from_numpy(np.array(each.at(scale))) for each in starts]
    free = [
        (value.requires_grad_(), each) for value, each in zip(inputs, starts, strict=True) if each.changes
    ]
    limits = [
        (value, torch.as_tensor(each.low), torch.as_tensor(each.high))
        for value, each in free
        if each.low is not None
    ]
    optimizer = torch.optim.Adam([{"params": [value], "span": each.step(scale)} for value, each in free])
    for step in range(steps):
        loss = loss_of(inputs)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["span"] * rate_at(step, steps)
        optimizer.step()
        with torch.no_grad():
            for value, low, high in limits:
                value.copy_(value.clamp(low, high))
        progress(float(loss.detach()))
    return [each.detach().numpy() for each in inputs]
