"""Dynamic int8 and int4 weight quantization of an exported program for XNNPACK."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.graph.recurrent import RECURRENT, STEP_LOOP
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.formats.torch.quantize import weights as torch_weights
from edgeopt.formats.torch.quantize.overrides import named
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    from torch.fx import GraphModule


class QuantizeWeightsExecutorch(Stage):
    """``dynamic_int8``: int8 weights of linear layers and convolutions; ``int4``: linear layers only.

    Needs no calibration data: XNNPACK quantizes activations at run time. ``dynamic_int8`` leaves layers
    without a kernel in float, with a note; ``int4`` raises an error for them, unless ``layers`` sets
    another precision.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program_xnnpack"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"dynamic_int8", "int4"})}
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"
    revision: ClassVar[int] = 3

    scheme: Literal["dynamic_int8", "int4"] = Field(
        "dynamic_int8", description="int8 weights, or 4-bit weights of linear layers; float between layers"
    )
    io: Literal["float32", "int8"] = Field(
        "float32", description="dtype of inputs and outputs; these schemes support float32 only"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, as XNNPACK requires")
    group_size: int = Field(
        32,
        multiple_of=32,
        ge=32,
        description="int4: number of weights that share a scale, in layers whose input size it divides",
    )
    layers: dict[str, Literal["int4", "int8", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {conv*: int8}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"the inputs and outputs of these schemes are float32, not {io}")
        return io

    @field_validator("per_channel")
    @classmethod
    def _channels_only(cls, per_channel: bool) -> bool:
        if not per_channel:
            raise ValueError(
                "XNNPACK requires per-channel scales where activations are quantized at run time"
            )
        return per_channel

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: the program cannot be read, a pattern matches no layer, a layer has no kernel for the
                requested precision, or no layer has one.
        """
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        graph = torch_recurrent.with_loops(graph)
        plan = self._plan(graph, context)
        if any(operator_name(node) == STEP_LOOP and node.name in plan for node in graph.graph.nodes):
            context.note(torch_recurrent.WIDENED)
        path = context.folder / "model.pt2"
        with torch_engine.quiet(), torch_engine.one_thread():
            torch_program.write(torch_weights.quantize(graph, inputs, plan, self.group_size), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)

    def _plan(self, graph: "GraphModule", context: Context) -> dict[str, str]:
        """The precision of every layer to quantize, by node."""
        default = "int4" if self.scheme == "int4" else "int8"
        quantizable = torch_overrides.quantizable(graph, WEIGHTED | RECURRENT)
        nodes = {node.name: node for node in graph.graph.nodes}
        requested = torch_overrides.precisions(quantizable, self.layers)
        plan: dict[str, str] = {}
        without_kernel: list[str] = []
        for layer in quantizable:
            precision = requested.get(layer.name, default)
            if precision == "float32":
                continue
            if torch_weights.has_kernel(nodes[layer.node], graph, precision):
                plan[layer.node] = precision
            elif layer.name in requested or self.scheme == "int4":
                without_kernel.append(f"{layer.name} ({layer.kind}, {precision})")
            else:
                without_kernel.append(f"{layer.name} ({layer.kind})")
        # Entries with a comma contain a precision that the recipe requests: it must not be dropped silently.
        if without_kernel and (self.scheme == "int4" or any(", " in text for text in without_kernel)):
            raise StageError(
                f"XNNPACK has no kernel for {named(without_kernel)}: 4-bit weights are for linear layers, "
                "dynamic int8 for linear layers and 2-D convolutions over several channels",
                fix=f"keep them in float with layers: {{{without_kernel[0].split(' ')[0]}: float32}}, "
                "or choose scheme int8",
            )
        if not plan:
            reason = f"it has {named(without_kernel)}" if without_kernel else "no layer is left to quantize"
            raise StageError(
                f"XNNPACK supports {default} weights for no layer of this model: {reason}",
                fix="choose scheme int8, or put the variant in a recipe without executorch",
            )
        if without_kernel:
            context.note(
                f"dynamic int8: {len(plan)} of {len(quantizable)} layers; XNNPACK has no kernel for "
                f"{named(without_kernel)}, which stay in float"
            )
        return plan
