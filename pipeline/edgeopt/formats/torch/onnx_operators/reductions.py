"""Reductions over axes, and what is normalized with them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.onnx_operators.table import TABLE, Operator, Unsupported, operator

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

TINY = 1e-30
"""Keeps zeros zero that are divided by their norm."""
SOFTMAX_PER_AXIS = 13
"""First operator set in which a softmax is over one axis, instead of all axes from ``axis`` on."""


def _reduce(
    compute: "Callable[[Tensor, list[int], bool], Tensor]",
    x: "Tensor",
    given: "np.ndarray[Any, Any] | None" = None,
    *,
    axes: list[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> "Tensor":
    """Reduce over ``axes``, which newer operator sets give as an input; without any, over all."""
    chosen = [int(axis) for axis in given.reshape(-1)] if given is not None else axes or []
    if not chosen and noop_with_empty_axes:
        return x
    places = sorted(axis % x.ndim for axis in chosen) if chosen else list(range(x.ndim))
    return compute(x, places, bool(keepdims)) if x.ndim else x


def _product(x: "Tensor", axes: list[int], keep: bool) -> "Tensor":
    import torch

    for axis in reversed(axes):
        x = torch.prod(x, axis, keepdim=keep).to(x.dtype)
    return x


def _sum(x: "Tensor", axes: list[int], keep: bool) -> "Tensor":
    return x.sum(axes, keepdim=keep).to(x.dtype)


def _log_sum_exp(x: "Tensor", axes: list[int], keep: bool) -> "Tensor":
    return x.logsumexp(axes, keepdim=keep)


REDUCTIONS: "dict[str, Callable[[Tensor, list[int], bool], Tensor]]" = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": _sum,
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x * x, axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": _log_sum_exp,
}
TABLE.update({name: Operator(partial(_reduce, compute), known=(1,)) for name, compute in REDUCTIONS.items()})


def _arg(name: str, x: "Tensor", *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> "Tensor":
    import torch

    found: Tensor = getattr(torch, name)(
        torch.flip(x, [axis]) if select_last_index else x, axis, keepdim=bool(keepdims)
    )
    return x.shape[axis] - 1 - found if select_last_index else found


TABLE["ArgMax"] = Operator(partial(_arg, "argmax"))
TABLE["ArgMin"] = Operator(partial(_arg, "argmin"))


@operator("TopK", known=(1,))
def top_k(
    x: "Tensor",
    k: "np.ndarray[Any, Any] | None" = None,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
) -> "tuple[Tensor, Tensor]":
    import torch

    if k is None:
        raise Unsupported("its operator set gives k as an attribute")
    found = torch.topk(x, int(k.reshape(())[()]), axis, bool(largest), bool(sorted))
    return found.values, found.indices


@operator("CumSum", known=(1,))
def cumsum(x: "Tensor", axis: "np.ndarray[Any, Any]", *, exclusive: int = 0, reverse: int = 0) -> "Tensor":
    import torch

    place = int(axis.reshape(())[()]) % x.ndim
    x = torch.flip(x, [place]) if reverse else x
    result = torch.cumsum(x, place).to(x.dtype)
    result = result - x if exclusive else result
    return torch.flip(result, [place]) if reverse else result


def _over_axes(name: str, x: "Tensor", *, axis: int | None = None, opset: int) -> "Tensor":
    import torch

    compute = getattr(torch, name)
    if opset >= SOFTMAX_PER_AXIS:
        result: Tensor = compute(x, -1 if axis is None else axis)
        return result
    place = (1 if axis is None else axis) % x.ndim
    if place == x.ndim - 1:
        return compute(x, -1)
    flat = compute(x.flatten(place), -1)
    return flat.reshape(x.shape)


TABLE["Softmax"] = Operator(partial(_over_axes, "softmax"))
TABLE["LogSoftmax"] = Operator(partial(_over_axes, "log_softmax"))


@operator("LpNormalization")
def lp_normalization(x: "Tensor", *, axis: int = -1, p: int = 2) -> "Tensor":
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else (x * x).sum(axis, keepdim=True).sqrt()
    return x / norm.clamp(min=TINY)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: "Tensor", *, axes: list[int] | None = None) -> "Tensor":
    chosen = axes or [0, 2, 3]
    centred = x - x.mean(chosen, keepdim=True)
    return centred / ((centred * centred).mean(chosen, keepdim=True).sqrt() + 1e-9)


@operator("BatchNormalization")
def batch_normalization(
    x: "Tensor",
    scale: "Tensor",
    bias: "Tensor",
    mean: "Tensor",
    variance: "Tensor",
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    count: int,
) -> "Tensor":
    import torch

    if not spatial or (training_mode and (count > 1 or x.shape[0] > 1)):
        raise Unsupported("batch normalization in training mode, or per position, is not carried")
    if training_mode:  # the statistics of one sample, as of each channel
        return torch.nn.functional.group_norm(x, x.shape[1], scale, bias, epsilon)
    return torch.nn.functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def instance_normalization(
    x: "Tensor", scale: "Tensor", bias: "Tensor", *, epsilon: float = 1e-5
) -> "Tensor":
    import torch

    # One group per channel; instance_norm itself leaves copies of the batch in the exported program.
    return torch.nn.functional.group_norm(x, x.shape[1], scale, bias, epsilon)


@operator("GroupNormalization")
def group_normalization(
    x: "Tensor",
    scale: "Tensor",
    bias: "Tensor",
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> "Tensor":
    import torch

    if scale.numel() != x.shape[1]:  # before operator set 21, one per group
        scale, bias = (v.repeat_interleave(x.shape[1] // num_groups) for v in (scale, bias))
    return torch.nn.functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: "Tensor",
    scale: "Tensor",
    bias: "Tensor | None" = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    count: int,
) -> Any:
    import torch

    shape = x.shape[axis % x.ndim :]
    weights = [None if v is None else v if v.shape == shape else v.expand(shape) for v in (scale, bias)]
    result = torch.nn.functional.layer_norm(x, shape, *weights, epsilon)
    if count == 1:
        return result
    axes = list(range(axis % x.ndim, x.ndim))
    variance = x.var(axes, unbiased=False, keepdim=True)
    return result, x.mean(axes, keepdim=True), (variance + epsilon).rsqrt()


@operator("RMSNormalization")
def rms_normalization(
    x: "Tensor", scale: "Tensor", *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> "Tensor":
    axes = list(range(axis % x.ndim, x.ndim))
    return x * ((x * x).mean(axes, keepdim=True) + epsilon).rsqrt() * scale


@operator("LRN")
def local_response(
    x: "Tensor", *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> "Tensor":
    import torch

    if size % 2 == 0:
        raise Unsupported("an even size is not carried")
    return torch.nn.functional.local_response_norm(x, size, alpha, beta, bias)
