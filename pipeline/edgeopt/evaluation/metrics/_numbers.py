"""Outputs and labels of the regression metrics, in equal shapes."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.plugin import PerSample

Floats = NDArray[np.float64]


def paired(outputs: PerSample, target: PerSample) -> tuple[Floats, Floats]:
    """Outputs and labels as float64 ``[n, ...]``; axes of length 1 do not matter.

    Raises:
        UsageError: their number or shapes differ.
    """
    if len(outputs) != len(target):
        raise UsageError(f"{len(outputs)} outputs but {len(target)} labels")
    if not (isinstance(outputs, np.ndarray) and isinstance(target, np.ndarray)):
        raise UsageError(
            "the shapes of outputs or labels differ between samples", fix="provide labels of one shape"
        )
    if _without_ones(outputs.shape) != _without_ones(target.shape):
        raise UsageError(
            f"outputs of shape {list(outputs.shape)} cannot be compared with labels of shape "
            f"{list(target.shape)}",
            fix="provide one label array per sample, with the shape of the output",
        )
    return outputs.astype(np.float64), target.reshape(outputs.shape).astype(np.float64)


def squared_errors(outputs: Floats, expected: Floats) -> Floats:
    """The mean squared error of each sample ``[n]``; infinite for outputs that are not finite."""
    errors = np.square(outputs - expected).reshape(len(outputs), -1).mean(axis=1)
    return np.where(np.isfinite(errors), errors, np.inf)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape[1:] if size != 1]
