"""Weight quantization of float TFLite models, without calibration data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.tflite.graph.interpreter import Candidates, finished
from edgeopt.formats.tflite.graph.layers import WeightedLayer
from edgeopt.formats.tflite.quantize import precision as tflite_precision
from edgeopt.formats.tflite.quantize import quantizer as tflite_quantizer
from edgeopt.formats.tflite.quantize.precision import Plan, Types
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._judging import search_samples
from edgeopt.stages._search import Searching, search

TYPES: Types = {
    precision: (frozenset({precision}), "float32") for precision in ("float32", "float16", "int8", "int4")
}
DEFAULT = {"dynamic_int8": "int8", "float16": "float16", "int4": "int4"}
RAISED = {"int8": "float32", "float16": "float32", "int4": "int8"}
"""Precision that a search assigns to a layer that needs more."""
TABLES = frozenset({"GATHER"})
"""Operators that read rows of weights, of which the quantizer has no form with float outputs."""
BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}


class QuantizeWeightsTflite(Searching):
    """Quantize weights only, with ai-edge-quantizer; inputs, outputs and activations stay float32.

    ``dynamic_int8``: LiteRT kernels quantize activations to 8 bits at run time, per sample. ``float16``:
    half-precision weights, which the runtime widens on loading; a GPU delegate uses them directly. ``int4``:
    two weights per byte, one scale per channel or, for dense layers, per ``block``; computed like
    ``dynamic_int8``, or in float (``compute``). Weights without a correct kernel are dequantized to float:
    those of depthwise and transposed convolutions in int4, and of depthwise convolutions with a single scale.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {
        "quantize": frozenset({"dynamic_int8", "float16", "int4"})
    }
    worker: ClassVar[Worker] = "plain"
    requires: ClassVar[tuple[str, ...]] = ("ai-edge-quantizer", "ai-edge-litert")
    extra: ClassVar[str | None] = "keras"
    revision: ClassVar[int] = 3

    scheme: Literal["dynamic_int8", "float16", "int4"] = Field(
        description="dynamic_int8: int8 weights, activations quantized at run time; float16: half-precision "
        "weights; int4: 4-bit weights"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    layers: dict[str, Literal["float32", "float16", "int8", "int4"]] = Field(
        {}, description="weight precision by layer name or pattern"
    )
    block: Literal[32, 64, 128, 256] | None = Field(
        None, description="int4: number of weights in a row that share a scale, for dense layers only"
    )
    compute: Literal["int8", "float32"] = Field(
        "int8",
        description="int4: quantize activations at run time (int8), or dequantize the weights (float32)",
    )

    @field_validator("block", "compute")
    @classmethod
    def _check_int4_options(cls, value: object, info: ValidationInfo) -> object:
        scheme, layers = info.data.get("scheme", "int4"), info.data.get("layers", {})
        default = cls.model_fields[str(info.field_name)].default
        if value != default and scheme != "int4" and "int4" not in layers.values():
            raise ValueError(f"{info.field_name} applies to int4, not to {scheme}")
        if info.field_name == "compute" and value == "float32" and info.data.get("block") is not None:
            raise ValueError("blocks cannot be dequantized to float: remove 'block' or 'compute'")
        return value

    def run(self, model: Model, context: Context) -> Model:
        """Quantize the weights of one model.

        Raises:
            StageError: a pattern in ``layers`` matches no layer, a layer has no kernel for its precision, or
                a layer does not get it.
        """
        source = read_signature(model.path)
        layers = [layer for layer in tflite_precision.float_layers(model.path) if layer.elements]
        plan = tflite_precision.chosen(layers, self._default, self.layers)
        plan = self._without_tables(layers, plan, context)
        content = model.path.read_bytes()
        described = model if model.inputs else model.model_copy(update={"inputs": source.inputs})
        path = context.folder / "model.tflite"
        higher = RAISED[self._default]

        def make(raised: frozenset[str]) -> Path:
            recipe = tflite_quantizer.weights_recipe(
                layers,
                plan | dict.fromkeys(raised, higher),
                per_channel=self.per_channel,
                block=self.block,
                unpack=self.compute == "float32",
            )
            path.write_bytes(tflite_quantizer.quantized(content, model.path.name, recipe))
            return path

        context.progress("quantizing weights")
        if self.max_drop is not None:
            extra_bits = BITS[higher] - BITS[self._default]
            costs = {n.name: n.elements * extra_bits // 8 for n in layers if plan[n.name] == self._default}
            samples, labels = search_samples(described, context)
            candidates = Candidates(model.path, costs, make, samples)
            raised = search(candidates, labels, max_drop=self.max_drop, budget=self.budget, context=context)
            plan |= dict.fromkeys(raised, higher)
        # A search leaves its last candidate at this path, not the chosen one.
        make(frozenset())
        tflite_precision.verify(path, layers, plan, TYPES, self.scheme)
        return finished(path, described)

    def _without_tables(self, layers: Sequence[WeightedLayer], plan: Plan, context: Context) -> Plan:
        """The plan with tables in float that no pattern selects; a note tells them and their size."""
        named = tflite_precision.chosen(layers, "", self.layers)
        tables = [layer for layer in layers if layer.kind in TABLES and not named[layer.name]]
        if tables:
            names = ", ".join(layer.name for layer in tables)
            size = 4 * sum(layer.elements for layer in tables)
            context.note(f"tables that stay in float32, without a quantized kernel: {names} ({size:,} B)")
        return plan | dict.fromkeys((layer.name for layer in tables), "float32")

    @property
    def _default(self) -> str:
        """Precision of layers that no pattern selects."""
        return DEFAULT[self.scheme]
