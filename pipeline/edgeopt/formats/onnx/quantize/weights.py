"""Requantization of the constant weights of a QDQ graph from their float values, in a chosen encoding."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.onnx.quantize.overflow import (
    PAIR_LIMIT,
    WEIGHT_MAX,
    Numbers,
    Stored,
    pairs,
    rows_of,
    safe_scales,
    stored,
)
from edgeopt.formats.weight_rounding import Compensation

Encoding: TypeAlias = Literal["safe", "full", "reduced", "unsigned"]
"""Encoding of the weights of a layer. ``safe``: int8 with scales that prevent overflow of pairs of products.
``full``: int8 with the whole range. ``reduced``: int8 limited to 7 bits. ``unsigned``: ``full`` shifted by
128 to uint8, whose kernel widens before it multiplies; about half as fast with VNNI."""

REDUCED_MAX = PAIR_LIMIT // 2


class Weights:
    """The float weights of one model, for requantization in any QDQ graph made from it.

    Args:
        floats: values before quantization, by the name of the quantized constant.
        moments: second moments of the layer inputs ``[groups, width, width]``, by layer name; the weights of
            layers without moments are rounded to nearest.
    """

    def __init__(self, floats: Mapping[str, Numbers], moments: Mapping[str, NDArray[np.float64]]) -> None:
        self.floats, self.moments = floats, moments
        self._compensations: dict[str, Compensation] = {}
        self._cache: dict[tuple[str, str, bytes], tuple[Numbers, Numbers]] = {}

    def rewrite(self, model: Any, encodings: Mapping[str, Encoding]) -> None:
        """Requantize the weights of each layer in its encoding; layers not in ``encodings`` are unchanged.

        Weights shared by several layers get the encoding of the first layer, but unsigned instead of safe.
        """
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                uses[name] = uses.get(name, 0) + 1
        done = set()
        for layer in stored(model):
            name = layer.weight.input[0]
            encoding = encodings.get(layer.name)
            if encoding is None or name in done:
                continue
            done.add(name)
            tensors = [name, layer.weight.output[0], *(layer.bias.output if layer.bias is not None else ())]
            # Shared weights cannot change their scale: the bias of every reader depends on it.
            fixed = any(uses[value] > 1 for value in tensors) or name not in self.floats
            if encoding == "safe" and (fixed or layer.depthwise):
                encoding = "full" if layer.depthwise else "unsigned"
            if not fixed:
                self._put(layer, encoding, constants)
            if encoding == "unsigned":
                _shift(layer, constants)

    def _put(self, layer: Stored, encoding: Encoding, constants: Mapping[str, Any]) -> None:
        """Replace values and scales of one layer's weights, and adapt its bias."""
        from onnx import numpy_helper

        name, scale_name = layer.weight.input[:2]
        before = numpy_helper.to_array(constants[scale_name])
        key = name, "full" if encoding == "unsigned" else encoding, before.tobytes()
        # Search candidates differ in few layers, and the rounding of a layer is slow.
        if key not in self._cache:
            self._cache[key] = self._quantize(layer, encoding, before)
        values, scales = self._cache[key]
        _put(constants, name, values)
        _put(constants, scale_name, scales)
        if layer.bias is not None and encoding == "safe":
            _rescale_bias(layer.bias, scales / before, constants)

    def _quantize(self, layer: Stored, encoding: Encoding, before: Numbers) -> tuple[Numbers, Numbers]:
        """Values and scales; except for ``safe``, the scales ``before`` of the quantizer are kept."""
        floats = self.floats[layer.weight.input[0]]
        rows = rows_of(floats.astype(np.float64), layer.axis)
        scales = np.broadcast_to(before, (len(rows),)).astype(np.float64)
        if encoding == "safe":
            scales = _safe_scales(rows, scales, per_tensor=before.ndim == 0)
        steps = _nearest(rows, scales)
        if (compensation := self._compensation(layer.name)) is not None:
            steps = compensation.round(rows, scales, *_limits(steps, encoding))
        moved = np.moveaxis(floats, layer.axis, 0).shape
        values = np.moveaxis(steps.reshape(moved), 0, layer.axis).astype(np.int8)
        scales = scales.max() if before.ndim == 0 else scales
        return np.ascontiguousarray(values), np.asarray(scales, before.dtype).reshape(before.shape)

    def _compensation(self, name: str) -> Compensation | None:
        if name in self.moments and name not in self._compensations:
            self._compensations[name] = Compensation(self.moments[name])
        return self._compensations.get(name)


def _nearest(rows: Numbers, scales: Numbers) -> Numbers:
    return np.clip(np.rint(rows / scales[:, np.newaxis]), -WEIGHT_MAX, WEIGHT_MAX)


def _safe_scales(rows: Numbers, scales: Numbers, per_tensor: bool) -> Numbers:
    """Scales for which no pair overflows; at least ``scales``, which the range of a bias may have widened."""
    safe = np.maximum(safe_scales(rows), scales)
    if per_tensor:
        safe = np.full_like(safe, safe.max())
    # Rounding may lift a pair at exactly the limit one step above it.
    while (over := pairs(_nearest(rows, safe)) > PAIR_LIMIT).any():
        safe = np.where(over.any() if per_tensor else over, safe * (1 + 1e-4), safe)
    # In the precision of the file: the weights must be rounded with the scales that are stored.
    return safe.astype(np.float32).astype(np.float64)


def _limits(steps: Numbers, encoding: Encoding) -> tuple[Numbers, Numbers]:
    """The lowest and the highest value of each weight.

    For ``safe``, per row and sign: the largest weight keeps its value, or half the pair limit if that is
    more, and all others are limited to the remainder, so that no pair exceeds the limit.
    """
    if encoding != "safe":
        most = REDUCED_MAX if encoding == "reduced" else WEIGHT_MAX
        return np.full_like(steps, -most), np.full_like(steps, most)
    limits = []
    for sign in (-1, 1):
        values = sign * steps
        largest = np.clip(values.max(axis=1), REDUCED_MAX, WEIGHT_MAX)
        bounds = np.repeat((PAIR_LIMIT - largest)[:, np.newaxis], steps.shape[1], axis=1)
        bounds[np.arange(len(steps)), values.argmax(axis=1)] = largest
        limits.append(sign * bounds)
    return limits[0], limits[1]


def _rescale_bias(bias: Any, factors: Numbers, constants: Mapping[str, Any]) -> None:
    """Adapt an int32 bias to new weight scales: its scale is input scale times weight scale."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(constants[bias.input[0]]).astype(np.float64)
    scales = numpy_helper.to_array(constants[bias.input[1]])
    # A per-tensor bias scale can follow only one factor.
    spread = factors if scales.ndim else np.max(factors)
    _put(constants, bias.input[0], np.rint(values / spread).astype(np.int32))
    _put(constants, bias.input[1], (scales * spread).astype(scales.dtype).reshape(scales.shape))


def _shift(layer: Stored, constants: Mapping[str, Any]) -> None:
    """Shift values and zero point by 128 to uint8; the represented weights stay the same."""
    from onnx import numpy_helper

    for name in (layer.weight.input[0], layer.weight.input[2]):
        values = numpy_helper.to_array(constants[name])
        if values.dtype == np.int8:
            _put(constants, name, (values.astype(np.int16) + 128).astype(np.uint8))


def _put(constants: Mapping[str, Any], name: str, values: Numbers) -> None:
    from onnx import numpy_helper

    constants[name].CopyFrom(numpy_helper.from_array(values, name))
