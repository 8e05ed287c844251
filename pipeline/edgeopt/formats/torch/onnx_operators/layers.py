"""Convolutions, matrix products and pooling."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.onnx_operators.table import Unsupported, operator

if TYPE_CHECKING:
    from torch import Tensor


def _pads(
    auto: str,
    pads: Sequence[int] | None,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
        ]
        half = [each // 2 for each in total]
        rest = [each - part for each, part in zip(total, half, strict=True)]
        return (half, rest) if auto == "SAME_UPPER" else (rest, half)
    given = list(pads or []) if auto != "VALID" else []
    given = given or [0] * (2 * len(kernel))
    return given[: len(kernel)], given[len(kernel) :]


def _padded(x: "Tensor", before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> "Tensor":
    import torch

    amounts = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    return torch.nn.functional.pad(x, amounts, value=fill)


def _by_rank(name: str, rank: int) -> Any:
    import torch

    if not 1 <= rank <= 3:
        raise Unsupported(f"{rank} spatial axes are not carried")
    return getattr(torch.nn.functional, f"{name}{rank}d")


@operator("Conv")
def conv(
    x: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None" = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> "Tensor":
    rank = weight.ndim - 2
    stride, dilation = strides or [1] * rank, dilations or [1] * rank
    before, after = _pads(auto_pad, pads, x.shape[2:], weight.shape[2:], stride, dilation)
    if before != after:
        x, before = _padded(x, before, after), [0] * rank
    result: Tensor = _by_rank("conv", rank)(x, weight, bias, stride, before, dilation, group)
    return result


@operator("ConvTranspose")
def conv_transpose(
    x: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None" = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> "Tensor":
    rank = weight.ndim - 2
    stride, dilation = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    whole = [
        (n - 1) * s + d * (k - 1) + 1 + more
        for n, k, s, d, more in zip(x.shape[2:], weight.shape[2:], stride, dilation, extra, strict=True)
    ]
    wanted = output_shape[-rank:] if output_shape else None
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is not None:
        total = [a - b for a, b in zip(whole, wanted, strict=True)]
        half = [max(each, 0) // 2 for each in total]
        rest = [each - part for each, part in zip(total, half, strict=True)]
        before, after = (rest, half) if auto_pad == "SAME_LOWER" else (half, rest)
    else:
        before, after = _pads(auto_pad, pads, [0] * rank, weight.shape[2:], stride, dilation)
    # PyTorch takes the same amount off both ends: less at the end is output padding, more is a slice.
    short = [a - b for a, b in zip(before, after, strict=True)]
    added = [max(more + missing, 0) for more, missing in zip(extra, short, strict=True)]
    cut = [max(-more - missing, 0) for more, missing in zip(extra, short, strict=True)]
    if any(at < 0 for at in before) or any(
        a >= max(s, d) for a, s, d in zip(added, stride, dilation, strict=True)
    ):
        raise Unsupported(f"padding {before} and {after} of a transposed convolution is not carried")
    result: Tensor = _by_rank("conv_transpose", rank)(x, weight, bias, stride, before, added, group, dilation)
    for axis, amount in enumerate(cut, 2):
        if amount:
            result = result.narrow(axis, 0, result.shape[axis] - amount)
    return result


@operator("MatMul")
def matmul(a: "Tensor", b: "Tensor") -> "Tensor":
    import torch

    return torch.matmul(a, b)


@operator("Gemm")
def gemm(
    a: "Tensor",
    b: "Tensor",
    c: "Tensor | None" = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> "Tensor":
    import torch

    a = a.t() if transA else a
    weight = b if transB else b.t()
    if alpha == beta == 1.0 and (c is None or c.shape == weight.shape[:1]):
        return torch.nn.functional.linear(a, weight, c)
    product = torch.nn.functional.linear(a, weight) * alpha
    return product if c is None else product + c * beta


@operator("MaxPool")
def max_pool(
    x: "Tensor",
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    count: int,
) -> "Tensor":
    if count > 1:
        raise Unsupported("its output of indices is not carried")
    rank = len(kernel_shape)
    stride, dilation = strides or [1] * rank, dilations or [1] * rank
    before, after = _pads(auto_pad, pads, x.shape[2:], kernel_shape, stride, dilation)
    if before != after or any(2 * p > k for p, k in zip(before, kernel_shape, strict=True)):
        x, before = _padded(x, before, after, float("-inf")), [0] * rank
    result: Tensor = _by_rank("max_pool", rank)(
        x, kernel_shape, stride, before, dilation, ceil_mode=bool(ceil_mode)
    )
    return result


@operator("AveragePool")
def average_pool(
    x: "Tensor",
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> "Tensor":
    import torch

    rank = len(kernel_shape)
    stride = strides or [1] * rank
    if set(dilations or [1]) != {1}:
        raise Unsupported("dilations of an average are not carried")
    before, after = _pads(auto_pad, pads, x.shape[2:], kernel_shape, stride, [1] * rank)
    pool = _by_rank("avg_pool", rank)
    options = {"ceil_mode": bool(ceil_mode)}
    if before == after and all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True)):
        counted = bool(count_include_pad) or not any(before)
        result: Tensor = pool(x, kernel_shape, stride, before, count_include_pad=counted, **options)
        return result
    result = pool(_padded(x, before, after), kernel_shape, stride, 0, **options)
    if count_include_pad:
        return result
    ones = _padded(torch.ones(1, 1, *x.shape[2:]), before, after)
    return result / pool(ones, kernel_shape, stride, 0, **options)


@operator("GlobalAveragePool")
def global_average_pool(x: "Tensor") -> "Tensor":
    import torch

    if x.ndim == 4:
        return torch.nn.functional.adaptive_avg_pool2d(x, 1)
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: "Tensor") -> "Tensor":
    return x.amax(list(range(2, x.ndim)), keepdim=True)
