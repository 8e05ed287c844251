"""Float ONNX to int8 ONNX in QDQ form, through onnxruntime."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from edgeopt.errors import StageError
from edgeopt.formats import onnx as onnx_files
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

CHUNK = 64
"""Samples whose ranges are held before they are merged: onnxruntime keeps every sample until asked."""


class QuantizeOnnx(Stage):
    """Static int8 quantization with ``onnxruntime.quantization``: QDQ, exact min-max ranges.

    x86 processors with AVX2 but without VNNI add pairs of uint8 x int8 products in 16 bits, which overflow
    without a word. So weights are quantized symmetrically to int8 and then stored as uint8 with zero point
    128: the same numbers exactly, in the form whose kernel widens to 16 bits before it multiplies.
    ``weight_type: int8`` is about twice as fast on processors with VNNI and safe on ARM; with
    ``reduce_range`` it is safe everywhere, at the price of one bit of the weights.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"quantize": frozenset({"int8"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "plain"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    extra: ClassVar[str | None] = "onnx"

    scheme: Literal["int8"] = Field("int8", description="int8: weights and activations in 8 bits")
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    activation_type: Literal["uint8", "int8"] = Field("uint8", description="type of the activations")
    weight_type: Literal["uint8", "int8"] = Field(
        "uint8", description="int8 is faster with VNNI and on ARM, but overflows on AVX2 without VNNI"
    )
    reduce_range: bool = Field(False, description="weights in 7 bits, which cannot overflow on any x86")

    @model_validator(mode="after")
    def _has_kernel(self) -> "QuantizeOnnx":
        if self.activation_type == "int8" and self.weight_type == "uint8":
            raise ValueError(
                "onnxruntime has no kernel for int8 activations with uint8 weights: choose int8 both"
            )
        return self

    def run(self, model: Model, context: Context) -> Model:
        """Calibrate and quantize one model.

        Raises:
            StageError: without usable calibration data, or when a convolution or dense layer stays float.
        """
        # Left to itself the library ends with a warning about the pre-processing that was done before.
        logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
        inputs, _ = onnx_files.specs(onnx_files.load(model.path))
        path = context.folder / "model.onnx"
        with tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch:
            prepared = Path(scratch, "prepared.onnx")
            _prepare(model, prepared)
            ranges = Path(scratch, "ranges.json")
            names = [spec.name for spec in inputs]
            _calibrate(prepared, ranges, _samples(model, inputs, context, names))
            context.progress("quantizing")
            self._quantize(model, prepared, ranges, path)
        proto = onnx_files.load(path)
        if self.weight_type == "uint8":
            _store_unsigned(proto)
        _strip(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        left = onnx_files.float_weighted(proto)
        if left:
            raise StageError(
                f"{len(left)} layers of {model.path.name} stayed float although int8 was asked for: "
                f"{'; '.join(left[:5])}",
                fix="replace these layers, or leave quantize out of this variant",
            )
        found, outputs = onnx_files.specs(proto)
        described = tuple(
            spec.model_copy(update={"layout": before.layout})
            for spec, before in zip(found, model.inputs or found, strict=True)
        )
        return Model(
            format="onnx",
            path=path,
            inputs=described,
            outputs=outputs,
            transposes=onnx_files.count(proto, "Transpose"),
        )

    def _quantize(self, model: Model, prepared: Path, ranges: Path, target: Path) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
        try:
            quantize_static(
                str(prepared),
                str(target),
                None,
                quant_format=QuantFormat.QDQ,
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
                activation_type=kinds[self.activation_type],
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=str(ranges),
            )
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            raise StageError(f"onnxruntime cannot quantize {model.path.name}: {error}") from error


def _prepare(model: Model, target: Path) -> None:
    """Fold constants and batch norms and infer all shapes, independent of the processor at hand."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(model.path), str(target), skip_symbolic_shape=True)
    except (Fail, InvalidGraph, NotImplemented, RuntimeError, ValueError) as error:
        raise StageError(f"onnxruntime cannot prepare {model.path.name} for int8: {error}") from error


def _samples(model: Model, inputs: Any, context: Context, names: list[str]) -> Iterator[dict[str, Any]]:
    if context.calibration is None:
        raise StageError("int8 needs calibration data", fix="add 'data: {calibration: ...}' to the recipe")
    described = model if model.inputs else model.model_copy(update={"inputs": inputs})
    for number, values in enumerate(context.calibration.inputs(described)):
        if not all(np.isfinite(value).all() for value in values):
            raise StageError(
                f"calibration sample {number} holds NaN or infinite values",
                fix="remove the sample, or check the preprocessing",
            )
        for spec, value in zip(inputs, values, strict=True):
            if value.shape != spec.shape and None not in spec.shape:
                raise StageError(
                    f"calibration sample {number} has the shape {list(value.shape)}, "
                    f"input {spec.name!r} takes {list(spec.shape)}",
                    fix="check the data's layout in 'preprocessing'",
                )
        yield dict(zip(names, values, strict=True))


class _Reader:
    """What onnxruntime's calibrator reads from: the next sample, or None at the end."""

    def __init__(self, samples: Iterator[dict[str, Any]]) -> None:
        self.samples = samples
        self.count = 0

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self.samples, None)
        self.count += sample is not None
        return sample


def _calibrate(model: Path, target: Path, samples: Iterator[dict[str, Any]]) -> None:
    """Write the range of every tensor over all samples, merged chunk by chunk."""
    from onnxruntime.quantization.calibrate import MinMaxCalibrater, save_tensors_data

    observer = MinMaxCalibrater(model, augmented_model_path=str(model.with_name("observed.onnx")))
    observer.augment_graph()
    observer.create_inference_session()
    count = 0
    for first in samples:
        reader = _Reader(_chain(first, islice(samples, CHUNK - 1)))
        observer.collect_data(reader)
        count += reader.count
    if not count:
        raise StageError("the calibration data is empty", fix="give at least one sample, better 100 or more")
    save_tensors_data(observer.compute_data(), target)


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _store_unsigned(model: Any) -> None:
    """Rewrite constant int8 tensors as uint8 with 128 added to values and zero points: no value changes."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shifted = set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants or len(node.input) < 3:
            continue
        for name in (node.input[0], node.input[2]):
            values = numpy_helper.to_array(constants[name])
            if values.dtype == np.int8 and name not in shifted:
                shifted.add(name)
                unsigned = (values.astype(np.int16) + 128).astype(np.uint8)
                constants[name].CopyFrom(numpy_helper.from_array(unsigned, name))


def _strip(model: Any) -> None:
    """Drop what tells of the making of the file: inferred shapes, marks of tools, stack traces, paths."""
    for owner in (model, model.graph, *model.graph.node):
        del owner.metadata_props[:]
        owner.doc_string = ""
    del model.graph.value_info[:]
