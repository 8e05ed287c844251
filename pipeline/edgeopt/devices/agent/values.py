"""Conversion between the values of the data and those that a model stores."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt_agent.failure import AgentError
from edgeopt_agent.session import Spec


def fit(array: Any, spec: Spec) -> Any:
    """Convert an array to the dtype of an input: quantize real numbers, widen or range-check others.

    Values that already have a quantized input's dtype are taken as quantized.

    Raises:
        AgentError: kind ``input``: the conversion would lose values.
    """
    target = np.dtype(spec.dtype)
    if array.dtype == target:
        return np.ascontiguousarray(array)
    if spec.scale:
        return quantize(array, spec)
    if np.issubdtype(target, np.floating) or np.can_cast(array.dtype, target):
        return np.ascontiguousarray(array, dtype=target)
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(target, np.integer):
        limits = np.iinfo(target)
        if array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max):
            return np.ascontiguousarray(array, dtype=target)
    raise AgentError("input", f"input {spec.name!r} has dtype {target}, but the data has {array.dtype}")


def quantize(array: Any, spec: Spec) -> Any:
    """Real to stored numbers: divide by the scale, round half to even, add the zero point, clip."""
    real = np.asarray(array, np.float32)
    if not np.isfinite(real).all():
        raise AgentError("input", f"the data for the quantized input {spec.name!r} contains NaN or infinity")
    limits = np.iinfo(spec.dtype)
    stored = np.rint(real / np.float32(spec.scale)) + np.float32(spec.zero_point or 0)
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def dequantize(array: Any, spec: Spec) -> Any:
    """Stored integers to the real numbers they represent, as float32; other arrays are unchanged."""
    if not spec.scale or not np.issubdtype(array.dtype, np.integer):
        return array
    return (array.astype(np.float32) - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)
