"""Requantization of the constant weights of a QDQ graph from their float values, in a chosen encoding."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from edgeopt.formats.onnx.quantize.moments import Moments
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


class _Rounded(NamedTuple):
    """The weights of one layer on their grid."""

    values: Numbers
    scales: Numbers
    shifts: tuple[Numbers, ...]
    """Of each layer that reads them, ``[outputs]``: by how much rounding lowers the mean of its outputs, for
    the bias to take up; else 0."""


Encoding: TypeAlias = Literal["safe", "full", "reduced", "unsigned"]
"""Encoding of the weights of a layer. ``safe``: int8 with scales that prevent overflow of pairs of products.
``full``: int8 with the whole range. ``reduced``: int8 limited to 7 bits. ``unsigned``: ``full`` shifted by
128 to uint8, whose kernel widens before it multiplies; about half as fast with VNNI."""

REDUCED_MAX = PAIR_LIMIT // 2
FEWEST_POSITIONS = 16
"""Number of inputs of a layer below which their mean is too uncertain to correct the bias by."""


class Weights:
    """The float weights of one model, for requantization in any QDQ graph made from it.

    Args:
        floats: values before quantization, by the name of the quantized constant.
        moments: moments of the layer inputs, by layer name; the weights of layers without moments are
            rounded to nearest.
    """

    def __init__(self, floats: Mapping[str, Numbers], moments: Mapping[str, Moments]) -> None:
        self.floats, self.moments = floats, moments
        self._compensations: dict[tuple[str, ...], Compensation] = {}
        self._cache: dict[tuple[str, str, tuple[str, ...], bytes], _Rounded] = {}

    def rewrite(self, model: Any, encodings: Mapping[str, Encoding]) -> None:
        """Requantize the weights of each layer in its encoding; layers not in ``encodings`` are unchanged.

        Weights shared by several layers, such as the two branches of a siamese network, are rounded for the
        inputs of all of them, and are unsigned if those of one layer are. Where an operator without a bias
        of its own reads them, too, they keep their scale, and are unsigned instead of safe.
        """
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        uses = Counter(name for node in model.graph.node for name in node.input)
        readers: dict[str, list[Stored]] = {}
        for layer in stored(model):
            readers.setdefault(layer.weight.input[0], []).append(layer)
        for name, layers in readers.items():
            found = {encodings[layer.name] for layer in layers if layer.name in encodings}
            if not found:
                continue
            encoding: Encoding = "unsigned" if "unsigned" in found else min(found)
            fixed = name not in self.floats or not _is_free(layers, uses)
            depthwise = any(layer.depthwise for layer in layers)
            if encoding == "safe" and (fixed or depthwise):
                encoding = "full" if depthwise else "unsigned"
            if not fixed:
                self._put(layers, encoding, constants)
            if encoding == "unsigned":
                _shift(layers[0], constants)

    def _put(self, layers: Sequence[Stored], encoding: Encoding, constants: Mapping[str, Any]) -> None:
        """Replace values and scales of the weights of some layers, and adapt their biases."""
        from onnx import numpy_helper

        name, scale_name = layers[0].weight.input[:2]
        before = numpy_helper.to_array(constants[scale_name])
        names = tuple(layer.name for layer in layers)
        key = name, "full" if encoding == "unsigned" else encoding, names, before.tobytes()
        # Search candidates differ in few layers, and the rounding of a layer is slow.
        if key not in self._cache:
            self._cache[key] = self._quantize(layers, encoding, before)
        rounded = self._cache[key]
        _put(constants, name, rounded.values)
        _put(constants, scale_name, rounded.scales)
        for layer, shift in zip(layers, rounded.shifts, strict=True):
            if layer.bias is not None:
                _adapt_bias(layer.bias, rounded.scales / before, shift, constants)

    def _quantize(self, layers: Sequence[Stored], encoding: Encoding, before: Numbers) -> _Rounded:
        """Values and scales; except for ``safe``, the scales ``before`` of the quantizer are kept."""
        axis = layers[0].axis
        floats = self.floats[layers[0].weight.input[0]]
        rows = rows_of(floats.astype(np.float64), axis)
        scales = np.broadcast_to(before, (len(rows),)).astype(np.float64)
        if encoding == "safe":
            scales = _safe_scales(rows, scales, per_tensor=before.ndim == 0)
        steps = _nearest(rows, scales)
        shifts = [np.zeros(1) for _ in layers]
        if (compensation := self._compensation(layers)) is not None:
            steps = compensation.round(rows, scales, *_limits(steps, encoding))
            if self._have_means(layers):
                for place, layer in enumerate(layers):
                    mean = self.moments[layer.name].mean
                    errors = (rows - steps * scales[:, np.newaxis]).reshape(len(mean), -1, mean.shape[1])
                    shifts[place] = (errors @ mean[:, :, np.newaxis]).reshape(-1)
        moved = np.moveaxis(floats, axis, 0).shape
        values = np.moveaxis(steps.reshape(moved), 0, axis).astype(np.int8)
        scales = scales.max() if before.ndim == 0 else scales
        scales = np.asarray(scales, before.dtype).reshape(before.shape)
        return _Rounded(np.ascontiguousarray(values), scales, tuple(shifts))

    def _compensation(self, layers: Sequence[Stored]) -> Compensation | None:
        names = tuple(layer.name for layer in layers)
        if all(name in self.moments for name in names) and names not in self._compensations:
            # A bias takes up the mean of the error exactly, so that the weights need not.
            central = self._have_means(layers)
            found = [self.moments[name] for name in names]
            matrices = [each.central if central else each.second for each in found]
            self._compensations[names] = Compensation(reduce(np.add, matrices))
        return self._compensations.get(names)

    def _have_means(self, layers: Sequence[Stored]) -> bool:
        """Whether the biases take up the means of the errors."""
        return all(
            layer.bias is not None and self.moments[layer.name].positions >= FEWEST_POSITIONS
            for layer in layers
        )


def _is_free(layers: Sequence[Stored], uses: Mapping[str, int]) -> bool:
    """Whether only these layers read their common weights, alike, and each has a bias of its own or none."""
    weights = {layer.weight.output[0] for layer in layers}
    biases = [layer.bias.output[0] for layer in layers if layer.bias is not None]
    return (
        sum(uses[name] for name in weights) == len(layers)
        and uses[layers[0].weight.input[0]] == len(weights)
        and all(uses[name] == 1 for name in biases)
        and len({(layer.axis, layer.depthwise) for layer in layers}) == 1
    )


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
    """The lowest and the highest value of each weight, or of all as ``[1, 1]``.

    For ``safe``, per row and sign: the largest weight keeps its value, or half the pair limit if that is
    more, and all others are limited to the remainder, so that no pair exceeds the limit.
    """
    if encoding != "safe":
        most = np.full((1, 1), REDUCED_MAX if encoding == "reduced" else WEIGHT_MAX, steps.dtype)
        return -most, most
    limits = []
    for sign in (-1, 1):
        values = sign * steps
        largest = np.clip(values.max(axis=1), REDUCED_MAX, WEIGHT_MAX)
        bounds = np.repeat((PAIR_LIMIT - largest)[:, np.newaxis], steps.shape[1], axis=1)
        bounds[np.arange(len(steps)), values.argmax(axis=1)] = largest
        limits.append(sign * bounds)
    return limits[0], limits[1]


def _adapt_bias(bias: Any, factors: Numbers, shift: Numbers, constants: Mapping[str, Any]) -> None:
    """Adapt an int32 bias to new weight scales, of which its scale is a multiple, and add ``shift`` to it."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(constants[bias.input[0]]).astype(np.float64)
    scales = numpy_helper.to_array(constants[bias.input[1]])
    # A per-tensor bias scale can follow only one factor.
    scales = (
        (scales * (factors if scales.ndim else np.max(factors))).astype(scales.dtype).reshape(scales.shape)
    )
    before = numpy_helper.to_array(constants[bias.input[1]]).astype(np.float64)
    limits = np.iinfo(np.int32)
    moved = np.clip(np.rint((values * before + shift) / scales), limits.min, limits.max)
    _put(constants, bias.input[0], moved.astype(np.int32))
    _put(constants, bias.input[1], scales)


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
