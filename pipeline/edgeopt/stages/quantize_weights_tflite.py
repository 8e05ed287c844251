"""Float TFLite to a smaller file that needs no calibration: the weights alone are quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.tflite.graph.interpreter import Candidates, finished
from edgeopt.formats.tflite.quantize import precision as tflite_precision
from edgeopt.formats.tflite.quantize import quantizer as tflite_quantizer
from edgeopt.formats.tflite.quantize.precision import Types
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._search import Searching, evidence, search

TYPES: Types = {
    precision: (frozenset({precision}), "float32") for precision in ("float32", "float16", "int8", "int4")
}
USUAL = {"dynamic_int8": "int8", "float16": "float16", "int4": "int4"}
RAISED = {"int8": "float32", "float16": "float32", "int4": "int8"}
"""What a search gives to a layer that needs more precision."""
BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}


class QuantizeWeightsTflite(Searching):
    """Weights in fewer bits with ai-edge-quantizer; inputs, outputs and activations stay float32 in the file.

    ``dynamic_int8``: LiteRT's kernels quantize activations to 8 bits at run time, sample by sample.
    ``float16``: half weights, which the runtime widens when it loads them; a delegate for a GPU takes them as
    they are. ``int4``: two weights in a byte, one scale per channel or, for dense layers, per ``block``;
    computed as ``dynamic_int8`` is, or in float (``compute``). Where there is no correct kernel, weights are
    unpacked to float: for depthwise and transposed convolutions in int4, and for depthwise ones with a
    single scale.
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
        description="dynamic_int8: int8 weights, activations quantized at run time; float16: half weights; "
        "int4: weights in 4 bits"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    layers: dict[str, Literal["float32", "float16", "int8", "int4"]] = Field(
        {}, description="precision of the weights of layers by name or pattern"
    )
    block: Literal[32, 64, 128, 256] | None = Field(
        None, description="int4: one scale for so many weights of a row, for dense layers only"
    )
    compute: Literal["int8", "float32"] = Field(
        "int8",
        description="int4: whether activations are quantized at run time, or weights unpacked to float",
    )

    @field_validator("block", "compute")
    @classmethod
    def _is_of_int4(cls, value: object, known: ValidationInfo) -> object:
        scheme, layers = known.data.get("scheme", "int4"), known.data.get("layers", {})
        usual = cls.model_fields[str(known.field_name)].default
        if value != usual and scheme != "int4" and "int4" not in layers.values():
            raise ValueError(f"{known.field_name} is an option of int4, not of {scheme}")
        if known.field_name == "compute" and value == "float32" and known.data.get("block") is not None:
            raise ValueError("blocks cannot be unpacked to float: leave out 'block' or 'compute'")
        return value

    def run(self, model: Model, context: Context) -> Model:
        """Quantize the weights of one model.

        Raises:
            StageError: when a pattern in ``layers`` fits none, when no kernel takes a layer's weights that
                way, or when a layer does not become what was asked for.
        """
        source = read_signature(model.path)
        layers = [layer for layer in tflite_precision.float_layers(model.path) if layer.elements]
        plan = tflite_precision.chosen(layers, self._usual, self.layers)
        content = model.path.read_bytes()
        described = model if model.inputs else model.model_copy(update={"inputs": source.inputs})
        path = context.folder / "model.tflite"
        higher = RAISED[self._usual]

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
            more = BITS[higher] - BITS[self._usual]
            costs = {n.name: n.elements * more // 8 for n in layers if plan[n.name] == self._usual}
            samples, labels = evidence(described, context)
            candidates = Candidates(model.path, costs, make, samples)
            raised = search(candidates, labels, max_drop=self.max_drop, budget=self.budget, context=context)
            plan |= dict.fromkeys(raised, higher)
        make(frozenset())
        tflite_precision.verify(path, layers, plan, TYPES, self.scheme)
        return finished(path, described)

    @property
    def _usual(self) -> str:
        """The precision of a layer of which nothing else is said."""
        return USUAL[self.scheme]
