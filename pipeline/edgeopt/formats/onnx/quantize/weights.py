"""The constant int8 weights of a QDQ graph, quantized anew from their float values in the form asked for."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats import weight_rounding
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

Form: TypeAlias = Literal["safe", "full", "reduced", "unsigned"]
"""How the weights of a layer are stored: ``safe``: int8 with scales that keep pairs of products below
overflow; ``full``: int8 with the whole range; ``reduced``: with 7 bits of it; ``unsigned``: the whole range
shifted by 128 to uint8, for the kernel that widens first: the same numbers as ``full``, about half as fast
with VNNI."""

REDUCED_MAX = PAIR_LIMIT // 2


class Weights:
    """The weights of one model, to be put into any QDQ graph made of it.

    ``floats`` holds their values before quantization, by the name of the quantized constant, ``moments`` the
    second moments of the layers' inputs ``[groups, width, width]`` by the name of the layer; a layer
    without has its weights rounded to the nearest step.
    """

    def __init__(self, floats: Mapping[str, Numbers], moments: Mapping[str, NDArray[np.float64]]) -> None:
        self.floats, self.moments = floats, moments
        self._known: dict[tuple[str, str, bytes], tuple[Numbers, Numbers]] = {}

    def rewrite(self, model: Any, forms: Mapping[str, Form]) -> None:
        """Store the weights of each layer in its form; a layer that ``forms`` does not name is left alone.

        Weights that several layers share get the form of the first, unsigned instead of safe.
        """
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                uses[name] = uses.get(name, 0) + 1
        done = set()
        for layer in stored(model):
            name = layer.weight.input[0]
            form = forms.get(layer.name)
            if form is None or name in done:
                continue
            done.add(name)
            own = [name, layer.weight.output[0], *(layer.bias.output if layer.bias is not None else ())]
            fixed = any(uses[value] > 1 for value in own) or name not in self.floats
            if form == "safe" and (fixed or layer.depthwise):
                form = "full" if layer.depthwise else "unsigned"
            if not fixed:
                self._put(layer, form, constants)
            if form == "unsigned":
                _shift(layer, constants)

    def _put(self, layer: Stored, form: Form, constants: Mapping[str, Any]) -> None:
        from onnx import numpy_helper

        name, scale_name = layer.weight.input[:2]
        before = numpy_helper.to_array(constants[scale_name])
        key = name, "full" if form == "unsigned" else form, before.tobytes()
        if key not in self._known:
            self._known[key] = self._quantize(layer, form, before)
        values, scales = self._known[key]
        _put(constants, name, values)
        _put(constants, scale_name, scales)
        if layer.bias is not None and form == "safe":
            _rescale_bias(layer.bias, scales / before, constants)

    def _quantize(self, layer: Stored, form: Form, before: Numbers) -> tuple[Numbers, Numbers]:
        """Values and scales; these are the quantizer's own but for ``safe``."""
        floats = self.floats[layer.weight.input[0]]
        rows = rows_of(floats.astype(np.float64), layer.axis)
        scales = np.broadcast_to(before, (len(rows),)).astype(np.float64)
        if form == "safe":
            scales = _wide_enough(rows, scales, alike=before.ndim == 0)
        steps = _nearest(rows, scales)
        moments = self.moments.get(layer.name)
        if moments is not None:
            steps = _compensated(rows, scales, moments, *_ends(steps, form))
        moved = np.moveaxis(floats, layer.axis, 0).shape
        values = np.moveaxis(steps.reshape(moved), 0, layer.axis).astype(np.int8)
        kept = scales.max() if before.ndim == 0 else scales
        return np.ascontiguousarray(values), np.asarray(kept, before.dtype).reshape(before.shape)


def _nearest(rows: Numbers, scales: Numbers) -> Numbers:
    return np.clip(np.rint(rows / scales[:, np.newaxis]), -WEIGHT_MAX, WEIGHT_MAX)


def _wide_enough(rows: Numbers, scales: Numbers, alike: bool) -> Numbers:
    """Scales with which no pair is too large; never below those given, which may be wide for a bias."""
    wide = np.maximum(safe_scales(rows), scales)
    if alike:
        wide = np.full_like(wide, wide.max())
    # Rounding may bring a sum of exactly the limit one step above it.
    while (over := pairs(_nearest(rows, wide)) > PAIR_LIMIT).any():
        wide = np.where(over.any() if alike else over, wide * (1 + 1e-4), wide)
    # What the file holds: the same numbers in the next steps.
    return wide.astype(np.float32).astype(np.float64)


def _ends(steps: Numbers, form: Form) -> tuple[Numbers, Numbers]:
    """The lowest and the highest value that each weight may take.

    For ``safe``: of each sign, the largest weight of a row may keep what it has, or half the limit; the
    others share the rest.
    """
    if form != "safe":
        most = REDUCED_MAX if form == "reduced" else WEIGHT_MAX
        return np.full_like(steps, -most), np.full_like(steps, most)
    found = []
    for sign in (-1, 1):
        values = sign * steps
        largest = np.clip(values.max(axis=1), REDUCED_MAX, WEIGHT_MAX)
        ends = np.repeat((PAIR_LIMIT - largest)[:, np.newaxis], steps.shape[1], axis=1)
        ends[np.arange(len(steps)), values.argmax(axis=1)] = largest
        found.append(sign * ends)
    return found[0], found[1]


def _compensated(
    rows: Numbers, scales: Numbers, moments: Numbers, lowest: Numbers, highest: Numbers
) -> NDArray[np.float64]:
    parts = np.split(np.arange(len(rows)), len(moments))
    found = [
        weight_rounding.compensated(rows[part], scales[part], seen, lowest[part], highest[part])
        for part, seen in zip(parts, moments, strict=True)
    ]
    return np.concatenate(found)


def _rescale_bias(bias: Any, factors: Numbers, constants: Mapping[str, Any]) -> None:
    """An int32 bias has the scale of its products: input scale times weight scale."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(constants[bias.input[0]]).astype(np.float64)
    scales = numpy_helper.to_array(constants[bias.input[1]])
    spread = factors if scales.ndim else np.max(factors)
    _put(constants, bias.input[0], np.rint(values / spread).astype(np.int32))
    _put(constants, bias.input[1], (scales * spread).astype(scales.dtype).reshape(scales.shape))


def _shift(layer: Stored, constants: Mapping[str, Any]) -> None:
    """Add 128 to values and zero point: the same numbers as uint8."""
    from onnx import numpy_helper

    for name in (layer.weight.input[0], layer.weight.input[2]):
        values = numpy_helper.to_array(constants[name])
        if values.dtype == np.int8:
            _put(constants, name, (values.astype(np.int16) + 128).astype(np.uint8))


def _put(constants: Mapping[str, Any], name: str, values: Numbers) -> None:
    from onnx import numpy_helper

    constants[name].CopyFrom(numpy_helper.from_array(values, name))
