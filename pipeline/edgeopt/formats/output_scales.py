"""How large the parts of an output are, so that training teaches the small ones as well.

A detector's boxes and scores often share one tensor, and an error of one logit is as large there as one of a
whole box.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

OF_ITSELF, OF_ALL = 0.1, 1e-3
"""Smallest scale of a part, relative to its own root mean square and to that of the whole output."""


def scales_of(output: NDArray[np.floating]) -> NDArray[np.float32]:
    """What to divide an output ``[n, ...]`` by, so that its parts count alike; broadcast to its shape.

    The parts are the slices along the channels, the second or the last axis, whichever they differ along
    more: formats of heads disagree. Their scales are standard deviations over all samples. An output of one
    axis besides the batch has a single scale, its root mean square.
    """
    values = np.asarray(output, np.float64)
    whole = max(float(np.sqrt(np.mean(values**2))), 1e-30)
    if values.ndim < 3:
        return np.full([1] * values.ndim, whole, np.float32)
    candidates = [_along(values, axis, whole) for axis in sorted({1, values.ndim - 1})]
    return max(candidates, key=lambda scales: float(np.std(np.log(scales)))).astype(np.float32)


def _along(values: NDArray[np.float64], axis: int, whole: float) -> NDArray[np.float64]:
    others = tuple(each for each in range(values.ndim) if each != axis)
    size = np.sqrt(np.mean(values**2, axis=others, keepdims=True))
    spread = np.std(values, axis=others, keepdims=True)
    return np.asarray(np.maximum(spread, np.maximum(OF_ITSELF * size, OF_ALL * whole)))


class ScaledOutputs:
    """Tensors of outputs, divided by their scales on the first batch. Student and teacher share one."""

    def __init__(self) -> None:
        self.scales: list[torch.Tensor] = []
        """One for each output; empty before the first batch."""

    def __call__(self, outputs: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """One output in its shape ``[n, ...]``, or several as ``[n, values]``."""
        import torch

        if not self.scales:
            found = [scales_of(value.detach().cpu().numpy()) for value in outputs]
            self.scales = [torch.from_numpy(each).to(outputs[0].device) for each in found]
        scaled = [value / scale for value, scale in zip(outputs, self.scales, strict=True)]
        return scaled[0] if len(scaled) == 1 else torch.cat([value.flatten(1) for value in scaled], dim=1)
