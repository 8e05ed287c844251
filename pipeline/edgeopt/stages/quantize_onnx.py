"""Static quantization of float ONNX models to int8 in QDQ format, through onnxruntime."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeopt.errors import StageError
from edgeopt.formats.calibration import MIXED, Calibrator, Histogram, spread
from edgeopt.formats.masks import NOTE as MASKS
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import in_float as onnx_in_float
from edgeopt.formats.onnx.graph import integer_io as onnx_integer_io
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.graph import masks as onnx_masks
from edgeopt.formats.onnx.graph import powers as onnx_powers
from edgeopt.formats.onnx.graph import residuals as onnx_residuals
from edgeopt.formats.onnx.graph import sentinels as onnx_sentinels
from edgeopt.formats.onnx.quantize import calibration as onnx_calibration
from edgeopt.formats.onnx.quantize import moments as onnx_moments
from edgeopt.formats.onnx.quantize import overflow as onnx_overflow
from edgeopt.formats.onnx.quantize import qdq as onnx_qdq
from edgeopt.formats.onnx.quantize import recurrent as onnx_recurrent
from edgeopt.formats.onnx.quantize import weight_encoding as onnx_weight_encoding
from edgeopt.formats.onnx.quantize.qdq import Making
from edgeopt.formats.onnx.quantize.weights import Weights
from edgeopt.formats.powers import NOTE as POWERS
from edgeopt.formats.residuals import NOTE as RESIDUALS
from edgeopt.formats.sentinels import NOTE as SENTINELS
from edgeopt.model import Array, Model, Outputs
from edgeopt.plugin import Context, Labels, Worker
from edgeopt.stages._judging import Judge, search_samples
from edgeopt.stages._search import JOINED, Searching, mixed_note, search

FEW = 10
"""Number of calibration samples below which the ranges are unreliable."""
OPSET, WIDE_OPSET = 13, 21
"""First ONNX opsets in which QuantizeLinear supports one scale per channel, and 16 bits."""
MOMENT_SAMPLES = 128
"""Number of samples whose layer inputs guide the rounding of the weights."""
CHOICE_SAMPLES = 256
"""Number of samples on which the weight encodings are compared."""


class QuantizeOnnx(Searching):
    """Quantize weights and activations with ``onnxruntime.quantization`` to a QDQ graph.

    On x86 CPUs with AVX2 but without VNNI, kernels add pairs of uint8 x int8 products in 16 bits, which
    saturate silently: the MLPerf Tiny keyword model drops from 91 % to 8 %. The common workarounds cost one
    bit of every weight (``reduce_range``), or half the speed on CPUs with VNNI (uint8 weights, whose kernel
    widens products first). ``weight_type: auto`` uses int8 weights with the smallest scale per output
    channel at which no pair can overflow for any input (`formats.onnx.quantize.overflow`); depthwise
    kernels, which cannot overflow, keep their full range. If that is worse than uint8 weights by more than
    2 dB, or by more than 1 % of the predictions and than chance, on up to 256 samples of the validation or
    calibration data, as few layers as needed get uint8 weights
    (`formats.onnx.quantize.weight_encoding`), with a note in the report.

    Weights are rounded so that their errors cancel on the calibration data (`formats.weight_rounding`); the
    bias takes up the mean of what is left. This outweighs the bit that overflow-free scales may cost: with
    only the weights quantized, 38 dB instead of the 36 dB of full-range rounding to nearest on the keyword
    model, 35 instead of 31 on ResNet8, 41 instead of 38 on ResNet20. By default, activation ranges minimize
    the squared error: 0.6 to 3 dB better than minimum and maximum on these three models.

    ``int8x16`` has 16-bit activations: as accurate as the weights allow, but slower than float on
    onnxruntime's CPU provider, which has no integer kernels for them. ``mixed`` is int8 with the
    accuracy-aware search.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"quantize": frozenset({"int8", "int8x16", "mixed"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "plain"
    cost: ClassVar[int] = 8
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    extra: ClassVar[str | None] = "onnx"
    revision: ClassVar[int] = 13

    scheme: Literal["int8", "int8x16", "mixed"] = Field(
        "int8",
        description="int8: 8-bit weights and activations; int8x16: 16-bit activations; mixed: int8, with the "
        "layers in float that max_drop (default 0.01) requires",
    )
    io: Literal["float32", "int8"] = Field("float32", description="dtype of inputs and outputs")
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    calibrator: Calibrator = Field("mse", description="how activation ranges are chosen")
    percentile: float = Field(
        99.99, gt=50, le=100, description="percent of the values inside the range, for percentile"
    )
    layers: dict[str, Literal["float32", "int8", "int16"]] = Field(
        {}, description="precision by layer name or pattern; the last pattern that matches applies"
    )
    activation_type: Literal["uint8", "int8"] = Field("uint8", description="dtype of 8-bit activations")
    weight_type: Literal["auto", "uint8", "int8"] = Field(
        "auto",
        description="auto: int8 without overflow, or uint8 where that is less accurate; uint8: full range, "
        "slower with VNNI; int8: full range, which overflows on x86 without VNNI",
    )
    rounding: Literal["compensated", "nearest"] = Field(
        "compensated",
        description="compensated: round weights so that their errors cancel on the calibration data",
    )
    reduce_range: bool = Field(False, description="7-bit weights, which cannot overflow on any x86 CPU")

    @model_validator(mode="after")
    def _has_kernel(self) -> "QuantizeOnnx":
        if self.activation_type == "int8" and self.weight_type == "uint8":
            raise ValueError(
                "onnxruntime has no kernel for int8 activations with uint8 weights: choose int8 for both"
            )
        if self.scheme == "int8x16" and self.io == "int8":
            raise ValueError("int8x16 has no 8-bit inputs and outputs: set io: float32, or scheme: int8")
        if self.scheme == "int8x16" and "int8" in self.layers.values():
            raise ValueError("int8x16 uses 16 bits between all layers: set scheme: int8, and layers to int16")
        if self.reduce_range and self.weight_type == "uint8":
            raise ValueError("reduce_range applies to int8 weights: uint8 weights cannot overflow")
        return self

    def run(self, model: Model, context: Context) -> Model:
        """Calibrate and quantize one model.

        Raises:
            StageError: the calibration data are missing or unusable, a pattern in ``layers`` matches no
                layer, or a layer did not get its precision.
        """
        inputs, _ = onnx_model_file.specs(onnx_model_file.load(model.path))
        described = model if model.inputs else model.model_copy(update={"inputs": inputs})
        path = context.folder / "model.onnx"
        with tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch:
            quantizing = _Quantizing(self, described, context, Path(scratch))
            raised: frozenset[str] = frozenset()
            drop = self.allowed_drop
            if drop is not None:
                raised = search(
                    quantizing, quantizing.labels, max_drop=drop, budget=self.budget, context=context
                )
            context.progress("quantizing")
            proto = onnx_model_file.load(quantizing.make(raised))
            # The library skips layers that it cannot quantize; the recipe is to fail instead.
            onnx_qdq.verify(proto, quantizing.plan(raised), self.scheme)
            onnx_recurrent.remark(proto, context.note)
            if self.io == "int8":
                onnx_integer_io.make_integer(proto, quantizing.ranges)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        new_inputs, outputs = onnx_model_file.specs(proto)
        new_inputs = tuple(
            spec.model_copy(update={"layout": source.layout})
            for spec, source in zip(new_inputs, described.inputs, strict=True)
        )
        return Model(
            format="onnx",
            path=path,
            inputs=onnx_integer_io.with_scales(proto, new_inputs),
            outputs=onnx_integer_io.with_scales(proto, outputs),
            transposes=onnx_model_file.count(proto, "Transpose"),
        )


class _Quantizing:
    """One model, calibrated once and quantized repeatedly."""

    def __init__(self, stage: QuantizeOnnx, model: Model, context: Context, scratch: Path) -> None:
        self.stage, self.model, self.context, self.scratch = stage, model, context, scratch
        self.prepared = scratch / "prepared.onnx"
        onnx_calibration.prepare(model.path, self.prepared, model.inputs)
        self.graph = onnx_model_file.load(self.prepared)
        wide = stage.scheme == "int8x16"
        # Converted here: the quantizer would do so with a warning for 16 bits, and for channels not at all.
        needed = {"16 bits": WIDE_OPSET} if wide or "int16" in stage.layers.values() else {"int8": OPSET}
        for reason, opset in needed.items():
            self.graph = onnx_model_file.at_opset(self.graph, opset, reason)
        self.prepared.write_bytes(self.graph.SerializeToString())
        self.making = Making(
            "int16" if wide else stage.activation_type, stage.per_channel, stage.reduce_range
        )
        layers = onnx_layers.in_float(self.graph, model.path.name)
        default = "int16" if wide else "int8"
        self.precisions = onnx_layers.chosen([layer.name for layer in layers], default, stage.layers)
        # Raising a layer to float32 costs 3 bytes per weight.
        self.layers = {
            layer.name: 3 * max(layer.weights, 1)
            for layer in layers
            if self.precisions[layer.name] != "float32"
        }
        self.joined = onnx_layers.joined_outputs(self.graph)
        self.masks = onnx_masks.masked(self.graph)
        if self.masks:
            context.note(MASKS)
        self.pools = onnx_in_float.rounded_up_averages(self.graph)
        if self.pools:
            context.note(
                "average pooling that rounds its size up stays in float, because the integer kernel of "
                f"onnxruntime is wrong: {', '.join(self.pools)}"
            )
        self.residuals = onnx_residuals.residual(self.graph) if default == "int8" else []
        if self.residuals:
            context.note(RESIDUALS)
        self.powers = onnx_powers.powers(self.graph)
        if self.powers:
            context.note(POWERS)
        self.weights_of = {layer.name: layer.weights for layer in layers}
        self.ranges_file = scratch / "ranges.json"
        self.unbounded: frozenset[str] = frozenset()
        self.ranges = self._calibrate()
        self.sentinels = onnx_sentinels.with_sentinels(
            self.graph, self.ranges, self.unbounded, self.weights_of
        )
        if set(self.sentinels) - {*self.masks}:
            context.note(SENTINELS)
        ratio = self._spread()
        self.is_mixed = ratio >= MIXED and stage.io == "float32"
        if ratio >= MIXED:
            context.note(mixed_note(ratio, in_float=self.is_mixed))
        elif self.joined and stage.io == "float32":
            self.layers[JOINED] = 1
        onnx_calibration.save(self.ranges, self.ranges_file)
        self.forms: onnx_weight_encoding.Encodings | None = None
        self._loaded_data: tuple[list[tuple[Array, ...]], Labels | None] | None = None

    @property
    def labels(self) -> Labels | None:
        return self._evaluation_data()[1]

    def _spread(self) -> float:
        """How much the sizes of the values differ that the outputs join."""
        joins = [
            node for node in self.graph.graph.node if node.name in self.joined and node.op_type == "Concat"
        ]
        known = ([self.ranges[name] for name in node.input if name in self.ranges] for node in joins)
        return max(map(spread, known), default=1.0)

    def plan(self, raised: frozenset[str]) -> dict[str, str]:
        return {**self.precisions, **dict.fromkeys(raised - {JOINED}, "float32")}

    def make(self, raised: frozenset[str]) -> Path:
        proto = self._quantize(raised)
        if self.forms is None:
            self.forms = self._choose_encodings(proto if not raised else self._quantize(frozenset()))
        self.weights.rewrite(proto, self.forms)
        return _save(proto, self.scratch / "candidate.onnx")

    def outputs(self, path: Path | None) -> Outputs:
        return onnx_calibration.outputs(path or self.prepared, self._evaluation_data()[0])

    def _quantize(self, raised: frozenset[str]) -> Any:
        target = self.scratch / "full.onnx"
        in_float = [*(self.joined if self.is_mixed or JOINED in raised else ()), *self.masks]
        in_float += [*self.pools, *self.sentinels, *self.residuals, *self.powers]
        plan = self.plan(raised)
        return onnx_qdq.make(self.prepared, self.ranges_file, target, plan, self.making, in_float)

    def _choose_encodings(self, full: Any) -> onnx_weight_encoding.Encodings:
        stage = self.stage
        names = [layer.name for layer in onnx_overflow.stored(full)]
        # Layers between 16-bit tensors compute in float, where nothing can overflow.
        wide: onnx_weight_encoding.Encodings = {
            name: "full" for name in names if self.precisions.get(name) == "int16"
        }
        names = [name for name in names if name not in wide]
        if stage.reduce_range or stage.weight_type == "int8" or self.making.activation == "int16":
            return {**dict.fromkeys(names, "reduced" if stage.reduce_range else "full"), **wide}
        if self.making.activation == "int8":
            # int8 activations run on the same kernel, but uint8 weights, the alternative, have none for them.
            return {**dict.fromkeys(names, "safe"), **wide}
        if stage.weight_type == "uint8":
            return {**dict.fromkeys(names, "unsigned"), **wide}
        samples = self._evaluation_data()[0][:CHOICE_SAMPLES]
        reference = onnx_calibration.outputs(self.prepared, samples)
        judge = Judge(reference, None, self.context.judging)
        self.context.progress("comparing weight encodings: fast and exact")

        def fidelity(forms: onnx_weight_encoding.Encodings) -> onnx_weight_encoding.Fidelity:
            copy = type(full).FromString(full.SerializeToString())
            self.weights.rewrite(copy, {**forms, **wide})
            path = _save(copy, self.scratch / "form.onnx")
            found = judge.compare(onnx_calibration.outputs(path, samples))
            agreement = 1.0 if found.agreement is None else found.agreement
            return onnx_weight_encoding.Fidelity(found.snr_db or 0.0, agreement, len(samples))

        forms, remark = onnx_weight_encoding.choose(
            names, onnx_weight_encoding.multiplications(self.graph), fidelity
        )
        self.context.note(remark)
        return {**forms, **wide}

    @cached_property
    def weights(self) -> Weights:
        from onnx import numpy_helper
        from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX as SUFFIX

        floats = {t.name + SUFFIX: numpy_helper.to_array(t) for t in self.graph.graph.initializer}
        if self.stage.rounding == "nearest":
            return Weights(floats, {})
        self.context.progress("rounding weights")
        samples = islice(self._samples(), MOMENT_SAMPLES)
        moments = onnx_moments.collect(self.prepared, samples, min(self.count, MOMENT_SAMPLES))
        left = [name for name in self.layers if self.weights_of.get(name) and name not in moments]
        if left:
            shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
            self.context.note(f"weights of {len(left)} layers are rounded to nearest: {shown}")
        return Weights(floats, moments)

    def _evaluation_data(self) -> tuple[list[tuple[Array, ...]], Labels | None]:
        if self._loaded_data is None:
            self._loaded_data = search_samples(self.model, self.context)
        return self._loaded_data

    def _calibrate(self) -> onnx_calibration.Ranges:
        self.context.progress("calibrating")
        samples = self._samples()
        if self.stage.calibrator == "minmax":
            ranges, count = onnx_calibration.extremes(self.prepared, samples)
        else:
            histograms, count = onnx_calibration.observe(self.prepared, samples, Histogram)
            # Never symmetric: a range that starts at zero replaces the Relu, which the quantizer removes.
            choose = partial(
                Histogram.range,
                calibrator=self.stage.calibrator,
                percentile=self.stage.percentile,
                levels=65536 if self.making.activation == "int16" else 256,
            )
            self.unbounded = frozenset(name for name, seen in histograms.items() if seen.is_unbounded)
            ranges = {name: choose(seen) for name, seen in histograms.items() if seen.count}
        self.count = count
        if not count:
            raise StageError(
                "the calibration data is empty", fix="provide at least one sample, preferably 100 or more"
            )
        if count < FEW:
            self.context.note(
                f"only {count} calibration sample{'s' * (count > 1)}: ranges are unreliable, use 100 or more"
            )
        return ranges

    def _samples(self) -> Iterator[dict[str, Array]]:
        calibration = self.context.calibration
        if calibration is None:
            raise StageError(
                f"{self.stage.scheme} needs calibration data",
                fix="add 'data: {calibration: ...}' to the recipe",
            )
        return onnx_calibration.named(self.model.inputs, calibration.inputs(self.model))


def _save(proto: Any, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path
