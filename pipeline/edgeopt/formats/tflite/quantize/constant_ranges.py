"""Ranges of constants, where those that ai-edge-quantizer would take of them are wrong or refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.formats.tflite.files.graphs import WEIGHTED, Operation, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import parse
from edgeopt.formats.tflite.graph.layers import DATA_AT
from edgeopt.model import Array

LARGEST_BIAS = 1 << 29
"""Upper bound on the stored int32 bias: products are added to it."""
TINY = 2.0**-126
"""The smallest normal float32."""
BIAS_AT = {"TRANSPOSE_CONV": 3}
CHANNEL_AXIS = {"DEPTHWISE_CONV_2D": 3, "CONV_3D": 4}
"""Axis of the output channels in the weights, where it is not 0."""


def with_constants(
    ranges: Mapping[str, Mapping[str, Any]], content: bytes, name: str, *, per_channel: bool
) -> dict[str, Any]:
    """The calibrated ranges of a float file, adapted to its constants.

    The library quantizes the constants of operators such as MAXIMUM with the range of the output, which must
    then be stored with the rank of the constant.

    The scale of a bias is that of its weights times that of the input: where a channel's weights are nearly
    zero, its int32 bias would saturate. Such weights get a wider range.
    """
    adapted: dict[str, Any] = dict(ranges)
    for operation in graphs_of(parse(content, name))[0].operations:
        if operation.kind in WEIGHTED:
            if (wider := _widened(operation, adapted, per_channel)) is not None:
                adapted[operation.present[1].name] = wider
            continue
        ranks = {len(each.shape) for each in operation.present if each.is_constant and _is_float(each)}
        for output in operation.outputs:
            if len(ranks) == 1 and output.name in ranges:
                shape = (1,) * ranks.copy().pop()
                both = ranges[output.name].items()
                adapted[output.name] = {key: np.reshape(value, shape) for key, value in both}
    return adapted


def _widened(operation: Operation, ranges: Mapping[str, Any], per_channel: bool) -> dict[str, Array] | None:
    """The range of a layer's weights that keeps its bias in range; None if they need no other."""
    data, weights = operation.inputs[DATA_AT.get(operation.kind, 0)], operation.inputs[1]
    at = BIAS_AT.get(operation.kind, 2)
    bias = operation.inputs[at] if at < len(operation.inputs) else None
    if data is None or data.name not in ranges or weights is None or bias is None:
        return None
    if not (weights.is_constant and bias.is_constant and _is_float(weights) and _is_float(bias)):
        return None
    values = _values(weights)
    axis = CHANNEL_AXIS.get(operation.kind, 0)
    others = tuple(at for at in range(values.ndim) if at != axis or not per_channel)
    largest: Array = np.abs(values).max(others, keepdims=True)
    if weights.name in ranges:  # another layer has the same weights
        largest = np.maximum(largest, ranges[weights.name]["max"])
    low, high = (float(np.ravel(ranges[data.name][end])[0]) for end in ("min", "max"))
    step = (max(high, 0.0) - min(low, 0.0)) / 255
    offsets: Any = np.abs(_values(bias)).reshape([-1 if at == axis else 1 for at in range(values.ndim)])
    if not per_channel:
        offsets = np.max(offsets, keepdims=True)
    needed = 127 * offsets / (max(step, TINY) * LARGEST_BIAS)
    if (needed <= largest).all():
        return None
    bound = np.maximum(largest, needed).astype(np.float32)
    return {"min": -bound, "max": bound}


def _values(tensor: Tensor) -> Array:
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype == "float32"
