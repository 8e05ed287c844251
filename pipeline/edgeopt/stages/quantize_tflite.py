"""Static quantization of float TFLite models, from any framework."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from edgeopt.formats.calibration import MIXED, Calibrator, spread
from edgeopt.formats.masks import ATTENTION
from edgeopt.formats.masks import NOTE as MASKS
from edgeopt.formats.powers import NOTE as POWERS
from edgeopt.formats.residuals import NOTE as RESIDUALS
from edgeopt.formats.sentinels import NOTE as SENTINELS
from edgeopt.formats.tflite.files.graphs import Signature, read_signature
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.graph import layers as tflite_layers
from edgeopt.formats.tflite.graph import masks as tflite_masks
from edgeopt.formats.tflite.graph import powers as tflite_powers
from edgeopt.formats.tflite.graph import residuals as tflite_residuals
from edgeopt.formats.tflite.graph import sentinels as tflite_sentinels
from edgeopt.formats.tflite.graph.interpreter import Candidates, finished
from edgeopt.formats.tflite.quantize import calibration as tflite_calibration
from edgeopt.formats.tflite.quantize import constant_ranges as tflite_constant_ranges
from edgeopt.formats.tflite.quantize import logarithms as tflite_logarithms
from edgeopt.formats.tflite.quantize import precision as tflite_precision
from edgeopt.formats.tflite.quantize import quantizer as tflite_quantizer
from edgeopt.formats.tflite.quantize.calibration import Calibrated
from edgeopt.formats.tflite.quantize.divisions import fragile_divisions
from edgeopt.formats.tflite.quantize.precision import Types
from edgeopt.formats.tflite.quantize.quantizer import Ranges
from edgeopt.formats.tflite.quantize.rewiring import rewired
from edgeopt.formats.tflite.quantize.variances import NOTE as VARIANCES
from edgeopt.formats.tflite.quantize.variances import variances
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._judging import search_samples
from edgeopt.stages._search import JOINED, Searching, mixed_note, search

TYPES: Types = {
    "float32": (frozenset({"float32"}), "float32"),
    "int4": (frozenset({"int4"}), "int8"),
    "int8": (frozenset({"int8"}), "int8"),
    # An embedding table has the dtype of the rows that are gathered from it.
    "int16": (frozenset({"int8", "int16"}), "int16"),
}
DEFAULT = {"int8": "int8", "int8x16": "int16", "mixed": "int8"}
BYTES_SAVED = 3
"""Bytes per weight that int8 saves against float32: the cost of keeping a layer in float."""


class QuantizeTflite(Searching):
    """Quantize weights and activations with ai-edge-quantizer.

    By default, ranges are the exact minimum and maximum over all calibration samples; the library's moving
    average loses 13 dB on ResNet20. Samples are streamed, so memory does not grow with their number.
    ``int8`` follows the TFLite 8-bit quantization specification: symmetric weights, per channel or per
    tensor, asymmetric activations, int32 biases. ``int8x16`` has symmetric 16-bit activations and int64
    biases; its kernels are correct but not optimized on any target. ``mixed`` is ``int8`` with a search for
    the layers that must stay in float to meet ``max_drop``.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"quantize": frozenset({"int8", "int8x16", "mixed"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "plain"
    requires: ClassVar[tuple[str, ...]] = ("ai-edge-quantizer", "ai-edge-litert")
    extra: ClassVar[str | None] = "keras"
    revision: ClassVar[int] = 12

    scheme: Literal["int8", "int8x16", "mixed"] = Field(
        "int8",
        description="int8: 8-bit weights and activations; int8x16: 16-bit activations; mixed: int8, with the "
        "layers in float that max_drop requires",
    )
    io: Literal["float32", "int8", "int16"] = Field(
        "float32",
        description="dtype of inputs and outputs: float32, or the integer type of the scheme",
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    calibrator: Calibrator = Field(
        "minmax",
        description="how activation ranges are chosen; minmax clips no value of the calibration data",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="percent of the values inside the range, for percentile"
    )
    layers: dict[str, Literal["float32", "int4", "int8", "int16"]] = Field(
        {},
        description="precision by layer name or pattern; int16: 8-bit weights, 16-bit activations; "
        "int4: 4-bit weights, 8-bit activations",
    )

    @field_validator("io")
    @classmethod
    def _check_io(cls, io: str, info: ValidationInfo) -> str:
        scheme = info.data.get("scheme", "int8")
        if io not in ("float32", DEFAULT[scheme]):
            raise ValueError(f"{scheme} supports io {DEFAULT[scheme]} or float32, not {io}")
        return io

    def run(self, model: Model, context: Context) -> Model:
        """Calibrate and quantize one model.

        Raises:
            StageError: the calibration data are missing or unusable, a pattern in ``layers`` matches no
                layer, or a layer does not get its precision.
        """
        source = read_signature(model.path)
        layers = tflite_precision.float_layers(model.path)
        plan = tflite_precision.chosen(layers, self._default, self.layers)
        kept = tflite_quantizer.without_kernel(layers, tflite_precision.chosen(layers, "", self.layers))
        if kept:
            names = ", ".join(f"{layer.label} ({4 * layer.elements:,} B)" for layer in kept)
            context.note(f"layers that stay in float32, without a quantized kernel: {names}")
        plan |= dict.fromkeys((layer.name for layer in kept), "float32")
        file = load(model.path)
        inner, joined = tflite_layers.inner_tensors(file), tflite_layers.joined_outputs(file)
        if self._default == "int8" and source.graph.count("SOFTMAX") and source.graph.count("BATCH_MATMUL"):
            context.note(ATTENTION)
        masks = tflite_masks.masked(file)
        if masks:
            context.note(MASKS)
        content = model.path.read_bytes()
        described = model if model.inputs else model.model_copy(update={"inputs": source.inputs})
        calibrated = self._ranges(content, described, source, context)
        ranges = calibrated.ranges
        with_constants = tflite_constant_ranges.with_constants(
            ranges, content, model.path.name, per_channel=self.per_channel
        )
        divisions = fragile_divisions(file, ranges)
        sentinels = tflite_sentinels.with_sentinels(file, *calibrated)
        if set(sentinels) - {*masks}:
            context.note(SENTINELS)
        if roots := variances(file):
            context.note(VARIANCES)
        if powers := sorted({*tflite_powers.powers(file)}.difference(roots)):
            context.note(POWERS)
        if residuals := tflite_residuals.residual(file) if self._default == "int8" else []:
            context.note(RESIDUALS)
        quantized = [layer for layer in layers if plan[layer.name] != "float32"]
        if before := tflite_logarithms.before_logarithms(file, ranges, quantized):
            rest = {layer.name for layer in layers}.difference(layer.name for layer in before)
            if rest:  # otherwise the network ends in the logarithm
                context.note(tflite_logarithms.note(before, rest))
        path = context.folder / "model.tflite"
        ratio = max((spread(_known(ranges, each.inputs)) for each in joined), default=1.0)
        is_mixed = ratio >= MIXED and self.io == "float32"
        if ratio >= MIXED:
            context.note(mixed_note(ratio, in_float=is_mixed))

        def make(raised: frozenset[str]) -> Path:
            mixed = plan | dict.fromkeys(raised - {JOINED}, "float32")
            in_float = [each.output for each in joined] if is_mixed or JOINED in raised else []
            in_float += [*masks, *divisions, *sentinels, *roots, *powers, *residuals]
            recipe = tflite_quantizer.static_recipe(
                layers,
                mixed,
                self._default,
                per_channel=self.per_channel,
                io=self.io,
                inner=[*inner, *in_float],
            )
            result = tflite_quantizer.quantized(content, model.path.name, recipe, with_constants)
            path.write_bytes(rewired(result, file, float_outputs=self.io == "float32"))
            return path

        context.progress("quantizing")
        raised: frozenset[str] = frozenset()
        if self.allowed_drop is not None:
            costs = {n.name: BYTES_SAVED * n.elements for n in layers if plan[n.name] == self._default}
            if joined and not is_mixed and self.io == "float32":
                costs[JOINED] = 1
            samples, labels = search_samples(described, context)
            candidates = Candidates(model.path, costs, make, samples)
            raised = search(
                candidates, labels, max_drop=self.allowed_drop, budget=self.budget, context=context
            )
        # A search leaves its last candidate at this path, not the chosen one.
        make(raised)
        plan |= dict.fromkeys(raised - {JOINED}, "float32")
        tflite_precision.verify(path, layers, plan, TYPES, self.scheme)
        if any(layer.inner and plan[layer.name] != "float32" for layer in layers):
            context.note(tflite_quantizer.IN_LOOPS)
        others = read_signature(path).graph.float_others()
        if others:
            context.note(f"operators without weights that stay in float: {', '.join(others)}")
        return finished(path, described)

    @property
    def _default(self) -> str:
        """Precision of layers that no pattern selects."""
        return DEFAULT[self.scheme]

    def _ranges(self, content: bytes, model: Model, source: Signature, context: Context) -> Calibrated:
        # A second pass over the samples has nothing new to say.
        once = context._replace(note=cache(context.note))
        name, values = model.path.name, partial(tflite_calibration.samples, model, source, once)
        if self.calibrator == "minmax":
            return tflite_calibration.extremes(content, name, source, values)
        levels = 2 ** tflite_quantizer.ACTIVATION_BITS[self._default]
        return tflite_calibration.calibrated(
            content, name, values(), self.calibrator, self.percentile, levels
        )


def _known(ranges: Ranges, tensors: Sequence[str]) -> list[tuple[float, float]]:
    """The calibrated ranges of some tensors; constants have none."""
    known = (ranges[name] for name in tensors if name in ranges)
    return [(float(np.min(each["min"])), float(np.max(each["max"]))) for each in known]
