"""An exported program with 8- or 4-bit weights for XNNPACK, whose activations are quantized at run time."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph.operators import WEIGHTED
from edgeopt.formats.torch.graph.to_modules import RECURRENT
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.formats.torch.quantize import weights as torch_weights
from edgeopt.formats.torch.quantize.overrides import named
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    from torch.fx import GraphModule


class QuantizeWeightsExecutorch(Stage):
    """``dynamic_int8``: int8 weights of linear layers and convolutions; ``int4``: 4 bits, linear layers only.

    Needs no calibration data: XNNPACK finds the range of each input when it runs. ``dynamic_int8`` leaves
    layers without such a kernel in float, and a note says which; ``int4`` refuses them, unless ``layers``
    gives them another precision.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program_xnnpack"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"dynamic_int8", "int4"})}
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"
    revision: ClassVar[int] = 2

    scheme: Literal["dynamic_int8", "int4"] = Field(
        "dynamic_int8", description="int8 weights, or 4-bit weights of linear layers; float between layers"
    )
    io: Literal["float32", "int8"] = Field(
        "float32", description="dtype of inputs and outputs; these schemes have float32 only"
    )
    per_channel: bool = Field(True, description="a scale per output channel; XNNPACK has no other here")
    group_size: int = Field(
        32,
        multiple_of=32,
        ge=32,
        description="of 4-bit weights: as many share a scale, where the inputs of a layer divide by it",
    )
    layers: dict[str, Literal["int4", "int8", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {conv*: int8}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"activations are float between layers, so inputs and outputs are too, not {io}")
        return io

    @field_validator("per_channel")
    @classmethod
    def _channels_only(cls, per_channel: bool) -> bool:
        if not per_channel:
            raise ValueError("XNNPACK needs a scale per channel where activations are quantized at run time")
        return per_channel

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: when the program cannot be read, a pattern fits no layer, a layer has no kernel of the
                precision asked for, or none has.
        """
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        plan = self._plan(graph, context)
        path = context.folder / "model.pt2"
        with torch_engine.quiet(), torch_engine.one_thread():
            torch_program.write(torch_weights.quantize(graph, inputs, plan, self.group_size), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)

    def _plan(self, graph: "GraphModule", context: Context) -> dict[str, str]:
        """The precision of every layer that is not to stay in float, by the name of its node."""
        usual = "int4" if self.scheme == "int4" else "int8"
        every = torch_overrides.quantizable(graph, WEIGHTED | frozenset(RECURRENT))
        nodes = {node.name: node for node in graph.graph.nodes}
        asked = torch_overrides.precisions(every, self.layers)
        plan: dict[str, str] = {}
        without: list[str] = []
        for layer in every:
            precision = asked.get(layer.name, usual)
            if precision == "float32":
                continue
            if torch_weights.has_kernel(nodes[layer.node], graph, precision):
                plan[layer.node] = precision
            elif layer.name in asked or self.scheme == "int4":
                without.append(f"{layer.name} ({layer.kind}, {precision})")
            else:
                without.append(f"{layer.name} ({layer.kind})")
        if without and (self.scheme == "int4" or any(", " in text for text in without)):
            raise StageError(
                f"XNNPACK has no kernel for {named(without)}: 4-bit weights are for linear layers, "
                "dynamic int8 for linear layers and 2-D convolutions over several channels",
                fix=f"say what they are to be: layers: {{{without[0].split(' ')[0]}: float32}}, "
                "or choose scheme int8",
            )
        if not plan:
            what = f"it has {named(without)}" if without else "none is left to quantize"
            raise StageError(
                f"XNNPACK can give no layer of this model {usual} weights: {what}",
                fix="choose scheme int8, or leave executorch out for this variant",
            )
        if without:
            context.note(
                f"dynamic int8: {len(plan)} of {len(every)} layers; XNNPACK has no such kernel for "
                f"{named(without)}, which stay in float"
            )
        return plan
