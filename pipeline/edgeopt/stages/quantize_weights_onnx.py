"""Quantization of float ONNX models without calibration data."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize import calibration as onnx_calibration
from edgeopt.formats.onnx.quantize import dynamic as onnx_dynamic
from edgeopt.formats.onnx.quantize import recurrent as onnx_recurrent
from edgeopt.formats.onnx.quantize import weight_only as onnx_weight_only
from edgeopt.model import Array, Model, Outputs
from edgeopt.plugin import Context, Labels, Worker
from edgeopt.stages._judging import search_samples
from edgeopt.stages._search import Searching, search

TYPES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dynamic_int8": {"dynamic_int8": ("int8", "uint8")},
    "float16": {"float16": ("float16",)},
    "int4": {"int4": ("int4",), "int8": ("int8",)},
}
"""For each scheme, the layer precisions other than float32, and the weight dtypes that implement them."""


class QuantizeWeightsOnnx(Searching):
    """Dynamic int8, float16 and weight-only int4, for the whole graph or layer by layer.

    ``dynamic_int8``: matrix products and convolutions quantize their inputs at run time, with
    ``onnxruntime.quantization``. Convolutions become several times slower than in float: use it for networks
    of matrix products. The weights cannot overflow on x86 CPUs without VNNI.

    ``float16``: constants and computation in half precision; inputs and outputs stay float32
    (``onnxruntime.transformers.float16``). A CPU provider without half-precision kernels computes in float32
    between casts.

    ``int4``: 4-bit weights with scales of least squared error. Matrix products become MatMulNBits, with one
    scale per ``block_size`` weights; convolutions get a DequantizeLinear with one scale per output channel,
    which runs on every inference: smaller files, slower than float. ``layers`` can select ``int8`` weights
    instead.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"quantize": frozenset(TYPES)}
    worker: ClassVar[Worker] = "plain"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    extra: ClassVar[str | None] = "onnx"
    revision: ClassVar[int] = 4

    scheme: Literal["dynamic_int8", "float16", "int4"] = Field(
        "dynamic_int8",
        description="dynamic_int8: activations quantized at run time; float16: half precision; "
        "int4: weights only",
    )
    io: Literal["float32"] = Field("float32", description="dtype of inputs and outputs")
    per_channel: bool = Field(True, description="dynamic_int8: one weight scale per output channel")
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="int4: number of weights of a matrix product that share a scale"
    )
    layers: dict[str, Literal["float32", "int8"]] = Field(
        {}, description="precision by layer name or pattern; the last pattern that matches applies"
    )

    @model_validator(mode="after")
    def _check_precisions(self) -> "QuantizeWeightsOnnx":
        for pattern, precision in self.layers.items():
            if precision != "float32" and precision not in TYPES[self.scheme]:
                raise ValueError(f"layers: the scheme {self.scheme} has no {precision} for {pattern!r}")
        return self

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one model.

        Raises:
            StageError: a pattern in ``layers`` matches no layer, or a layer cannot have its precision.
        """
        path = context.folder / "model.onnx"
        inputs, _ = onnx_model_file.specs(onnx_model_file.load(model.path))
        described = model if model.inputs else model.model_copy(update={"inputs": inputs})
        with tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch:
            quantizing = _Quantizing(self, described, context, Path(scratch))
            raised: frozenset[str] = frozenset()
            if self.max_drop is not None:
                labels = quantizing.evaluation_data()[1]
                raised = search(
                    quantizing, labels, max_drop=self.max_drop, budget=self.budget, context=context
                )
            context.progress("quantizing")
            candidate = quantizing.make(raised)
            proto = onnx_model_file.load(candidate)
            quantizing.verify(proto, raised)
            # onnxruntime resolves kernels on loading, so a missing one fails here rather than on the device.
            onnx_calibration.session(candidate)
            path.write_bytes(candidate.read_bytes())
        self._note_slow_layers(proto, context)
        onnx_recurrent.remark(proto, context.note)
        new_inputs, outputs = onnx_model_file.specs(proto)
        new_inputs = tuple(
            spec.model_copy(update={"layout": source.layout})
            for spec, source in zip(new_inputs, described.inputs, strict=True)
        )
        return Model(
            format="onnx",
            path=path,
            inputs=new_inputs,
            outputs=outputs,
            transposes=onnx_model_file.count(proto, "Transpose"),
        )

    def _note_slow_layers(self, proto: Any, context: Context) -> None:
        slow = onnx_model_file.count(proto, "ConvInteger")
        if slow:
            context.note(
                f"{slow} convolutions quantize their inputs at run time, 2 to 16 times slower than float in "
                "onnxruntime: int8 with calibration data is faster"
            )
        unpacked = sum(
            layer.kind == "Conv" for layer in onnx_layers.read(proto) if layer.weight in TYPES["int4"]
        )
        if unpacked:
            context.note(
                f"{unpacked} convolutions dequantize their weights on every inference, 2 to 5 times slower "
                "than float on small networks: only the file size improves"
            )
        if self.scheme == "float16":
            context.note("onnxruntime's CPU provider computes most half-precision operators in float32")


class _Quantizing:
    """One model, quantized repeatedly."""

    def __init__(self, stage: QuantizeWeightsOnnx, model: Model, context: Context, scratch: Path) -> None:
        self.stage, self.model, self.context, self.scratch = stage, model, context, scratch
        self.prepared = scratch / "prepared.onnx"
        onnx_calibration.prepare(model.path, self.prepared, model.inputs)
        layers = onnx_layers.in_float(onnx_model_file.load(self.prepared), model.path.name)
        names = [layer.name for layer in layers]
        self.precisions = onnx_layers.chosen(names, stage.scheme, stage.layers)
        # A product of two computed tensors has no constant to store in 4 bits.
        self.precisions |= {
            layer.name: "float32" for layer in layers if not layer.weights and stage.scheme == "int4"
        }
        if stage.scheme == "dynamic_int8":
            self._keep_in_float(layers)
        # Bytes that a weight saves against float32.
        saved = 3 if stage.scheme == "dynamic_int8" else 2 if stage.scheme == "float16" else 3.5
        self.layers = {
            layer.name: int(saved * layer.weights) + 1
            for layer in layers
            if self.precisions[layer.name] != "float32"
        }
        self._loaded_data: tuple[list[tuple[Array, ...]], Labels | None] | None = None

    def _keep_in_float(self, layers: Sequence[onnx_layers.Layer]) -> None:
        """Plan float for the layers that onnxruntime cannot quantize dynamically, with a note."""
        names = [layer.name for layer in layers if layer.kind == "ConvTranspose"]
        left = [name for name in names if self.precisions[name] != "float32"]
        self.precisions |= dict.fromkeys(left, "float32")
        if left:
            self.context.note(
                "transposed convolutions stay in float, because onnxruntime has no dynamic kernel for them: "
                + ", ".join(left)
            )

    def plan(self, raised: frozenset[str]) -> dict[str, str]:
        return {**self.precisions, **dict.fromkeys(raised, "float32")}

    def make(self, raised: frozenset[str]) -> Path:
        plan = self.plan(raised)
        in_float = [name for name, precision in plan.items() if precision == "float32"]
        if self.stage.scheme == "float16":
            proto = self._half(in_float)
        elif self.stage.scheme == "int4":
            proto = onnx_weight_only.make(self.prepared, plan, self.stage.block_size)
        else:
            target = self.scratch / "dynamic.onnx"
            proto = onnx_dynamic.make(self.prepared, target, in_float, self.stage.per_channel)
        path = self.scratch / "candidate.onnx"
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return path

    def _half(self, in_float: list[str]) -> Any:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(
            onnx_model_file.load(self.prepared), keep_io_types=True, node_block_list=in_float
        )
        onnx_model_file.strip(proto)
        return proto

    def outputs(self, path: Path | None) -> Outputs:
        return onnx_calibration.outputs(path or self.prepared, self.evaluation_data()[0])

    def evaluation_data(self) -> tuple[list[tuple[Array, ...]], Labels | None]:
        if self._loaded_data is None:
            self._loaded_data = search_samples(self.model, self.context)
        return self._loaded_data

    def verify(self, proto: Any, raised: frozenset[str]) -> None:
        """Check that every layer of the file has weights of the requested precision.

        Raises:
            StageError: naming the layers that do not.
        """
        layers = {layer.name: layer for layer in onnx_layers.read(proto)}
        types = {**TYPES[self.stage.scheme], "float32": ("float32",)}
        wrong = []
        for name, precision in self.plan(raised).items():
            layer = layers.get(name)
            if layer is None:
                wrong.append(f"{name} is missing")
            elif layer.weights and layer.weight not in types[precision]:
                wrong.append(f"{layer.kind} {name} has {layer.weight} weights, not {precision}")
        fix = "set these layers to float32 in 'layers', or choose another scheme"
        onnx_layers.refuse(wrong, self.stage.scheme, fix)
