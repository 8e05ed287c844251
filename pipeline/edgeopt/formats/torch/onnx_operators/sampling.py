"""Padding, and resampling of images and signals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.torch.onnx_operators.shapes import integers, pick
from edgeopt.formats.torch.onnx_operators.table import Unsupported, operator

if TYPE_CHECKING:
    from torch import Tensor

INTERPOLATE = {
    ("linear", "half_pixel"): {"align_corners": False},
    ("linear", "pytorch_half_pixel"): {"align_corners": False},
    ("linear", "align_corners"): {"align_corners": True},
    ("cubic", "half_pixel"): {"align_corners": False},
    ("cubic", "pytorch_half_pixel"): {"align_corners": False},
    ("cubic", "align_corners"): {"align_corners": True},
}
"""Resizing that ``torch.nn.functional.interpolate`` computes alike, and its arguments."""
MODES = {
    ("linear", 3): "linear",
    ("linear", 4): "bilinear",
    ("linear", 5): "trilinear",
    ("cubic", 4): "bicubic",
}


@operator("Pad", known=(1, 3), maybe=(2,))
def pad(
    x: "Tensor",
    given: Any = None,
    fill: Any = None,
    places: Any = None,
    *,
    mode: str = "constant",
    pads: list[int] | None = None,
    value: float = 0.0,
) -> "Tensor":
    import torch

    amounts = integers(pads if given is None else given)
    axes = list(range(x.ndim)) if places is None else [axis % x.ndim for axis in integers(places)]
    half = len(amounts) // 2
    ends = {axis: (amounts[at], amounts[half + at]) for at, axis in enumerate(axes)}
    if mode == "constant":
        if fill is not None and not isinstance(fill, np.ndarray):
            raise Unsupported("the value of its padding depends on an input")
        constant = value if fill is None or not fill.size else fill.reshape(-1)[0].item()
        touched = sorted(axis for axis, pair in ends.items() if any(pair))
        if not touched:
            return x
        flat = [n for axis in range(x.ndim - 1, min(touched) - 1, -1) for n in ends.get(axis, (0, 0))]
        return torch.nn.functional.pad(x, flat, value=constant)
    touched = sorted(axis for axis, pair in ends.items() if any(pair))
    rank = len(touched)
    name = {"edge": "replicate", "reflect": "reflect"}.get(mode, "circular")
    # PyTorch pads the last axes of a batch of channels.
    if touched == list(range(x.ndim - rank, x.ndim)) and x.ndim == rank + 2 <= 5:
        return torch.nn.functional.pad(x, [n for axis in reversed(touched) for n in ends[axis]], mode=name)
    for axis in touched:
        before, after = (max(amount, 0) for amount in ends[axis])
        cropped = range(max(-ends[axis][0], 0), x.shape[axis] - max(-ends[axis][1], 0))
        x = pick(x, axis, list(cropped)).movedim(axis, -1)
        rows = torch.nn.functional.pad(x.reshape(1, -1, len(cropped)), (before, after), mode=name)
        x = rows.reshape(*x.shape[:-1], -1).movedim(-1, axis)
    return x


@operator("Upsample", known=(1,))
def upsample(x: "Tensor", given: Any = None, *, mode: str = "nearest", scales: Any = None) -> "Tensor":
    factors = np.asarray(scales if given is None else given, np.float32)
    return resize(x, factors, mode=mode, opset=10)


@operator("Resize", known=(1, 2, 3))
def resize(
    x: "Tensor",
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    opset: int,
) -> "Tensor":
    import torch

    if opset < 11:  # then, the only other input is the scales
        scales, coordinate_transformation_mode, nearest_mode = roi, "asymmetric", "floor"
    if antialias or coordinate_transformation_mode == "tf_crop_and_resize":
        raise Unsupported("antialias and crops are not carried")
    if keep_aspect_ratio_policy != "stretch":
        raise Unsupported(f"keep_aspect_ratio_policy {keep_aspect_ratio_policy} is not carried")
    places = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
    length = {axis: x.shape[axis] for axis in places}
    if sizes is not None and sizes.size:
        new = dict(zip(places, integers(sizes), strict=True))
        scale = {axis: new[axis] / length[axis] for axis in places}
    else:
        scale = dict(zip(places, (float(each) for each in scales.reshape(-1)), strict=True))
        new = {axis: int(np.floor(length[axis] * scale[axis])) for axis in places}
    changed = [axis for axis in places if new[axis] != length[axis] or scale[axis] != 1.0]
    at = {
        axis: _coordinates(length[axis], new[axis], scale[axis], coordinate_transformation_mode)
        for axis in changed
    }
    if mode == "nearest":
        order = {axis: _nearest(at[axis], nearest_mode, length[axis]) for axis in changed}
        if x.ndim in (3, 4, 5) and all(
            axis > 1 and np.array_equal(order[axis], np.arange(new[axis]) * length[axis] // new[axis])
            for axis in changed
        ):
            return torch.nn.functional.interpolate(x, [new.get(a, x.shape[a]) for a in range(2, x.ndim)])
        for axis in changed:
            x = pick(x, axis, [int(each) for each in order[axis]])
        return x
    form = INTERPOLATE.get((mode, coordinate_transformation_mode))
    exact = all(
        axis > 1 and new[axis] > 1 and abs(scale[axis] * length[axis] - new[axis]) < 1e-4 for axis in changed
    )
    plain = mode == "linear" or (cubic_coeff_a == -0.75 and not exclude_outside)
    if form is not None and exact and plain and (mode, x.ndim) in MODES:
        target = [new.get(axis, x.shape[axis]) for axis in range(2, x.ndim)]
        return torch.nn.functional.interpolate(x, target, mode=MODES[mode, x.ndim], **form)
    for axis in changed:
        matrix = _weights(at[axis], length[axis], mode, cubic_coeff_a, bool(exclude_outside))
        x = torch.matmul(x.movedim(axis, -1), torch.from_numpy(matrix.T.copy())).movedim(-1, axis)
    return x


def _coordinates(length: int, new: int, scale: float, transformation: str) -> NDArray[np.float64]:
    """Where each element of the result is in the original axis."""
    at = np.arange(new, dtype=np.float64)
    if transformation == "asymmetric":
        return at / scale
    if transformation == "align_corners":
        return at * (length - 1) / (new - 1) if new > 1 else at * 0
    if transformation == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if new > 1 else at * 0
    if transformation == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    if transformation == "half_pixel_symmetric":
        adjustment = new / (scale * length)
        return length / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
    if transformation == "half_pixel":
        return (at + 0.5) / scale - 0.5
    raise Unsupported(f"coordinate_transformation_mode {transformation} is not carried")


def _nearest(at: NDArray[np.float64], mode: str, length: int) -> NDArray[np.int64]:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[mode]()
    return np.clip(rounded, 0, length - 1).astype(np.int64)


def _weights(
    at: NDArray[np.float64], length: int, mode: str, a: float, exclude_outside: bool
) -> NDArray[np.float32]:
    """The matrix ``[new, length]`` that interpolates an axis."""
    base = np.floor(at).astype(np.int64)
    offsets: Sequence[int] = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    if mode == "linear":
        at = np.clip(at, 0, length - 1)
        base = np.floor(at).astype(np.int64)
    matrix = np.zeros((len(at), length))
    rows = np.arange(len(at))
    for offset in offsets:
        distance = np.abs(at - (base + offset))
        weight = np.maximum(1 - distance, 0) if mode == "linear" else _cubic(distance, a)
        if exclude_outside:
            weight = np.where((base + offset < 0) | (base + offset >= length), 0, weight)
        np.add.at(matrix, (rows, np.clip(base + offset, 0, length - 1)), weight)
    return np.asarray(matrix / matrix.sum(1, keepdims=True), np.float32)


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """The kernel of Keys, https://doi.org/10.1109/TASSP.1981.1163711."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


@operator("GridSample")
def grid_sample(
    x: "Tensor",
    grid: "Tensor",
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> "Tensor":
    import torch

    names = {"linear": "bilinear", "cubic": "bicubic"}
    return torch.nn.functional.grid_sample(
        x, grid, names.get(mode, mode), padding_mode, align_corners=bool(align_corners)
    )
