"""How large the parts of an output are, so that training teaches the small ones as well. Pure.

A detector's boxes and scores often share one tensor, and an error of one logit is as large there as one of a
whole box.
"""

import numpy as np
from numpy.typing import NDArray

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
