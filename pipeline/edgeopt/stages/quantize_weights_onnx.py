"""Float ONNX with smaller weights, without calibration data."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize import calibration as onnx_calibration
from edgeopt.formats.onnx.quantize import dynamic as onnx_dynamic
from edgeopt.formats.onnx.quantize import weight_only as onnx_weight_only
from edgeopt.model import Array, Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._search import Searching, evidence, search

TYPES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dynamic_int8": {"dynamic_int8": ("int8", "uint8")},
    "float16": {"float16": ("float16",)},
    "int4": {"int4": ("int4",), "int8": ("int8",)},
}
"""For each scheme, what a layer can be beside float32, and the types that its weights may have then."""


class QuantizeWeightsOnnx(Searching):
    """Dynamic int8, float16 and weight-only int4, each for the whole graph or layer by layer.

    ``dynamic_int8``: matrix products and convolutions quantize their inputs at run time, with
    ``onnxruntime.quantization``. Convolutions become several times slower than float that way: it is a
    scheme for networks made of matrix products. Weights cannot overflow on x86 without VNNI.

    ``float16``: constants and computation in half precision, inputs and outputs stay float32
    (``onnxruntime.transformers.float16``). A CPU provider without half kernels computes in float32 between
    casts.

    ``int4``: weights in 4 bits with the scales of least squared error. Matrix products become MatMulNBits,
    blocks of ``block_size`` weights with a scale each; convolutions get a DequantizeLinear, a scale per
    output channel, which runs anew with every input: smaller files, slower than float. ``layers`` may ask
    for ``int8`` weights instead.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"quantize": frozenset(TYPES)}
    worker: ClassVar[Worker] = "plain"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    extra: ClassVar[str | None] = "onnx"
    revision: ClassVar[int] = 3

    scheme: Literal["dynamic_int8", "float16", "int4"] = Field(
        "dynamic_int8",
        description="dynamic_int8: activations quantized at run time; float16: half compute; "
        "int4: weights only",
    )
    io: Literal["float32"] = Field("float32", description="type of the model's inputs and outputs")
    per_channel: bool = Field(True, description="dynamic_int8: one weight scale per output channel")
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="int4: weights of a matrix product that share a scale"
    )
    layers: dict[str, Literal["float32", "int8"]] = Field(
        {}, description="patterns over layer names, and their precision; the last one that fits counts"
    )

    @model_validator(mode="after")
    def _can_be_had(self) -> "QuantizeWeightsOnnx":
        for pattern, precision in self.layers.items():
            if precision != "float32" and precision not in TYPES[self.scheme]:
                raise ValueError(f"layers: {pattern!r} cannot be {precision} in the scheme {self.scheme}")
        return self

    def run(self, model: Model, context: Context) -> Model:
        """Make one model smaller.

        Raises:
            StageError: when a pattern in ``layers`` fits no layer, or a layer cannot have its precision.
        """
        path = context.folder / "model.onnx"
        inputs, _ = onnx_model_file.specs(onnx_model_file.load(model.path))
        described = model if model.inputs else model.model_copy(update={"inputs": inputs})
        with tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch:
            quantizing = _Quantizing(self, described, context, Path(scratch))
            raised: frozenset[str] = frozenset()
            if self.max_drop is not None:
                labels = quantizing.seen()[1]
                raised = search(
                    quantizing, labels, max_drop=self.max_drop, budget=self.budget, context=context
                )
            context.progress("quantizing")
            made = quantizing.make(raised)
            proto = onnx_model_file.load(made)
            quantizing.verify(proto, raised)
            # Kernels are found, or not, when the file is loaded.
            onnx_calibration.session(made)
            path.write_bytes(made.read_bytes())
        self._tell(proto, context)
        found, outputs = onnx_model_file.specs(proto)
        kept = tuple(
            spec.model_copy(update={"layout": before.layout})
            for spec, before in zip(found, described.inputs, strict=True)
        )
        return Model(
            format="onnx",
            path=path,
            inputs=kept,
            outputs=outputs,
            transposes=onnx_model_file.count(proto, "Transpose"),
        )

    def _tell(self, proto: Any, context: Context) -> None:
        slow = onnx_model_file.count(proto, "ConvInteger")
        if slow:
            context.note(
                f"{slow} convolutions quantize their inputs at run time, 2 to 16 times slower than float in "
                "onnxruntime: int8 with calibration data is the faster scheme"
            )
        unpacked = sum(
            layer.kind == "Conv" for layer in onnx_layers.read(proto) if layer.weight in TYPES["int4"]
        )
        if unpacked:
            context.note(
                f"{unpacked} convolutions unpack their weights with every input, 2 to 5 times slower than "
                "float on small networks: the file is smaller, nothing else"
            )
        if self.scheme == "float16":
            context.note("onnxruntime's CPU provider computes most half-precision operators in float32")


class _Quantizing:
    """One model, quantized again and again."""

    def __init__(self, stage: QuantizeWeightsOnnx, model: Model, context: Context, scratch: Path) -> None:
        self.stage, self.model, self.context, self.scratch = stage, model, context, scratch
        self.prepared = scratch / "prepared.onnx"
        onnx_calibration.prepare(model.path, self.prepared)
        found = onnx_layers.read(onnx_model_file.load(self.prepared))
        done = [layer for layer in found if layer.weight != "float32"]
        if done or not found:
            what = f"{done[0].name} has {done[0].weight} weights" if done else "it has no layers with weights"
            raise StageError(
                f"{model.path.name} cannot be quantized: {what}", fix="quantize the float file of a network"
            )
        names = [layer.name for layer in found]
        self.precisions = onnx_layers.chosen(names, stage.scheme, stage.layers)
        # A product of two computed tensors has no weights to store.
        self.precisions |= {
            layer.name: "float32" for layer in found if not layer.weights and stage.scheme == "int4"
        }
        share = 3 if stage.scheme == "dynamic_int8" else 2 if stage.scheme == "float16" else 3.5
        self.layers = {
            layer.name: int(share * layer.weights) + 1
            for layer in found
            if self.precisions[layer.name] != "float32"
        }
        self._evidence: tuple[list[tuple[Array, ...]], Array | None] | None = None

    def plan(self, raised: frozenset[str]) -> dict[str, str]:
        return {**self.precisions, **dict.fromkeys(raised, "float32")}

    def make(self, raised: frozenset[str]) -> Path:
        plan = self.plan(raised)
        left = [name for name, precision in plan.items() if precision == "float32"]
        if self.stage.scheme == "float16":
            proto = self._half(left)
        elif self.stage.scheme == "int4":
            proto = onnx_weight_only.make(self.prepared, plan, self.stage.block_size)
        else:
            target = self.scratch / "dynamic.onnx"
            proto = onnx_dynamic.make(self.prepared, target, left, self.stage.per_channel)
        path = self.scratch / "candidate.onnx"
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return path

    def _half(self, left: list[str]) -> Any:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(
            onnx_model_file.load(self.prepared), keep_io_types=True, node_block_list=left
        )
        onnx_model_file.strip(proto)
        return proto

    def outputs(self, path: Path | None) -> NDArray[np.float32]:
        found: NDArray[np.float32] = onnx_calibration.outputs(path or self.prepared, self.seen()[0])
        return found

    def seen(self) -> tuple[list[tuple[Array, ...]], Array | None]:
        if self._evidence is None:
            self._evidence = evidence(self.model, self.context)
        return self._evidence

    def verify(self, proto: Any, raised: frozenset[str]) -> None:
        """Make sure that every layer of the file has the weights that were asked for.

        Raises:
            StageError: with the layers that were passed over.
        """
        found = {layer.name: layer for layer in onnx_layers.read(proto)}
        types = {**TYPES[self.stage.scheme], "float32": ("float32",)}
        wrong = []
        for name, precision in self.plan(raised).items():
            layer = found.get(name)
            if layer is None:
                wrong.append(f"{name} is gone")
            elif layer.weights and layer.weight not in types[precision]:
                wrong.append(f"{layer.kind} {name} has {layer.weight} weights, not {precision}")
        fix = "give these layers float32 in 'layers', or choose another scheme"
        onnx_layers.refuse(wrong, self.stage.scheme, fix)
