"""Shapes, axes, joins and constants: operators that move values without computing with them."""

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.torch.onnx_operators.table import Unsupported, operator

if TYPE_CHECKING:
    from torch import Tensor

Numbers = "np.ndarray[Any, Any]"


def integers(values: Any) -> list[int]:
    """The values of an array or list as integers."""
    return [int(value) for value in np.asarray(values).reshape(-1)]


@operator("Identity")
def identity(x: "Tensor") -> "Tensor":
    return x


@operator("Dropout", maybe=(2,))
def dropout(
    x: "Tensor", amount: Any = None, training: Any = None, *, ratio: float = 0.5, seed: int = 0, count: int
) -> Any:
    import torch

    if training is not None and not (isinstance(training, np.ndarray) and not training.any()):
        raise Unsupported("dropout in training mode is not carried")
    return x if count == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@operator("Shape", of_shape=True)
def shape(x: "Tensor", *, start: int = 0, end: int | None = None) -> "Tensor":
    import torch

    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size", of_shape=True)
def size(x: "Tensor") -> "Tensor":
    import torch

    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", known=(1,))
def reshape(x: "Tensor", target: Any, *, allowzero: int = 0) -> "Tensor":
    sizes = integers(target)
    kept = [x.shape[at] if length == 0 and not allowzero else length for at, length in enumerate(sizes)]
    return x.reshape(kept)


@operator("Flatten")
def flatten(x: "Tensor", *, axis: int = 1) -> "Tensor":
    place = axis % x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:place]), prod(x.shape[place:]))


@operator("Squeeze", known=(1,))
def squeeze(x: "Tensor", given: Any = None, *, axes: list[int] | None = None) -> "Tensor":
    chosen = axes if given is None else integers(given)
    if chosen is None:
        chosen = [at for at, length in enumerate(x.shape) if length == 1]
    places = {axis % x.ndim for axis in chosen}
    return x.reshape([length for at, length in enumerate(x.shape) if at not in places])


@operator("Unsqueeze", known=(1,))
def unsqueeze(x: "Tensor", given: Any = None, *, axes: list[int] | None = None) -> "Tensor":
    chosen = integers(axes if given is None else given)
    for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: "Tensor", *, perm: list[int] | None = None) -> "Tensor":
    return x.permute(perm or list(range(x.ndim))[::-1])


@operator("Concat")
def concat(*values: "Tensor", axis: int) -> "Tensor":
    import torch

    return values[0] if len(values) == 1 else torch.cat(values, axis)


@operator("Split", known=(1,))
def split(
    x: "Tensor",
    given: Any = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    count: int,
) -> "tuple[Tensor, ...]":
    import torch

    sizes = split if given is None else integers(given)
    if sizes is None:
        each = -(-x.shape[axis] // (num_outputs or count))
        sizes = [min(each, x.shape[axis] - at * each) for at in range(num_outputs or count)]
    return tuple(torch.split(x, sizes, axis))


@operator("Slice", known=(1, 2, 3, 4))
def slices(
    x: "Tensor",
    first: Any = None,
    last: Any = None,
    places: Any = None,
    strides: Any = None,
    *,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> "Tensor":
    begin, end = integers(starts if first is None else first), integers(ends if last is None else last)
    where = axes if places is None else integers(places)
    steps = [1] * len(begin) if strides is None else integers(strides)
    for axis, start, stop, step in zip(where or range(len(begin)), begin, end, steps, strict=False):
        taken = range(x.shape[axis])[start:stop:step]
        if step < 0:  # torch has no negative steps
            x = pick(x, axis, list(taken))
        elif len(taken) < x.shape[axis]:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(taken.start, taken.stop, step),)]
    return x


def pick(x: "Tensor", axis: int, places: list[int]) -> "Tensor":
    """The elements at known places of an axis, in that order."""
    import torch

    if places == list(range(x.shape[axis]))[::-1]:
        return torch.flip(x, [axis])
    steps = {b - a for a, b in pairwise(places)} or {1}
    if places and len(steps) == 1 and (step := steps.pop()) > 0:
        return x[(slice(None),) * (axis % x.ndim) + (slice(places[0], places[-1] + 1, step),)]
    return torch.index_select(x, axis, torch.tensor(places, dtype=torch.int64))


@operator("Gather", maybe=(1,))
def gather(x: "Tensor", indices: Any, *, axis: int = 0) -> "Tensor":
    import torch

    place = axis % x.ndim
    if isinstance(indices, np.ndarray):
        known = [index % x.shape[place] for index in integers(indices)]
        if indices.ndim == 0:
            return x.select(place, known[0])
        found = pick(x, place, known)
        return found.reshape(*x.shape[:place], *indices.shape, *x.shape[place + 1 :])
    if place == 0 and x.ndim == 2 and x.is_floating_point():
        return torch.nn.functional.embedding(indices.long(), x)
    found = torch.index_select(x, place, indices.reshape(-1).long())
    return found.reshape(*x.shape[:place], *indices.shape, *x.shape[place + 1 :])


def _from_start(indices: "Tensor", length: int) -> "Tensor":
    """Indices that count from the end, as those that count from the start."""
    import torch

    return torch.where(indices < 0, indices + length, indices).long()


@operator("GatherElements")
def gather_elements(x: "Tensor", indices: "Tensor", *, axis: int = 0) -> "Tensor":
    import torch

    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(x: "Tensor", indices: "Tensor", *, batch_dims: int = 0) -> "Tensor":
    if batch_dims:
        raise Unsupported("batch_dims is not carried")
    return x[tuple(_from_start(each, x.shape[at]) for at, each in enumerate(indices.unbind(-1)))]


@operator("ScatterND")
def scatter_nd(x: "Tensor", indices: "Tensor", updates: "Tensor", *, reduction: str = "none") -> "Tensor":
    if reduction not in ("none", "add"):
        raise Unsupported(f"reduction {reduction} is not carried")
    places = tuple(_from_start(each, x.shape[at]) for at, each in enumerate(indices.unbind(-1)))
    return x.index_put(places, updates, accumulate=reduction == "add")


@operator("ScatterElements", "Scatter")
def scatter(
    x: "Tensor", indices: "Tensor", updates: "Tensor", *, axis: int = 0, reduction: str = "none"
) -> "Tensor":
    import torch

    places = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    if reduction == "add":
        return torch.scatter_add(x, axis, places, updates)
    names = {"mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, places, updates, names[reduction])


@operator("Expand", known=(1,))
def expand(x: "Tensor", target: Any) -> "Tensor":
    import torch

    return x.expand(torch.broadcast_shapes(x.shape, integers(target)))


@operator("Tile", known=(1,))
def tile(x: "Tensor", repeats: Any) -> "Tensor":
    return x.repeat(integers(repeats))


@operator("ConstantOfShape", known=(0,))
def constant_of_shape(target: Any, *, value: Any = None) -> "Tensor":
    import torch

    fill = np.zeros(1, np.float32) if value is None else value
    return torch.from_numpy(np.full(integers(target), fill.reshape(-1)[0]))


@operator("Range", known=(0, 1, 2))
def span(start: Any, limit: Any, delta: Any) -> "Tensor":
    import torch

    first, last, step = (value.reshape(()) for value in (start, limit, delta))
    return torch.from_numpy(np.arange(first, last, step).astype(start.dtype))


@operator("NonZero", known=(0,))
def non_zero(x: Any) -> "Tensor":
    import torch

    return torch.from_numpy(np.stack(np.nonzero(x)).astype(np.int64))


@operator("OneHot", known=(1,))
def one_hot(indices: "Tensor", depth: Any, values: "Tensor", *, axis: int = -1) -> "Tensor":
    import torch

    length = integers(depth)[0]
    place = axis % (indices.ndim + 1)
    places = torch.arange(length).reshape(-1, *[1] * (indices.ndim - place))
    wide = indices.unsqueeze(place)
    return torch.where((wide == places) | (wide == places - length), values[1], values[0])


@operator("EyeLike", of_shape=True)
def eye_like(x: "Tensor", *, dtype: int | None = None, k: int = 0) -> "Tensor":
    import torch

    from edgeopt.formats.torch.onnx_operators.arithmetic import DTYPES

    kind = x.dtype if dtype is None else getattr(torch, DTYPES[dtype])
    return torch.from_numpy(np.eye(x.shape[0], x.shape[1], k)).to(kind)


@operator("Trilu", known=(1,))
def trilu(x: "Tensor", k: Any = None, *, upper: int = 1) -> "Tensor":
    import torch

    diagonal = 0 if k is None else integers(k)[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(x: "Tensor", *, blocksize: int, mode: str = "DCR") -> "Tensor":
    import torch

    if mode == "CRD":
        return torch.nn.functional.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    parts = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: "Tensor", *, blocksize: int) -> "Tensor":
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@operator("Einsum")
def einsum(*values: "Tensor", equation: str) -> "Tensor":
    import torch

    return torch.einsum(equation, *values)
