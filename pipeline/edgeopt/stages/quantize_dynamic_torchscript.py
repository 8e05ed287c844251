"""An exported program with int8 weights for TorchScript, whose activations are quantized at run time."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import WEIGHTED
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.formats.torch.quantize.overrides import Quantizable, named
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    from torch.fx import GraphModule

KERNELS = frozenset({"linear", *torch_to_modules.RECURRENT})
"""Operators that qnnpack runs with int8 weights and float activations."""


class QuantizeDynamicTorchscript(Stage):
    """int8 weights of linear, LSTM and GRU layers: ``torch.ao.quantization.quantize_dynamic`` for qnnpack.

    Needs no calibration data. Other layers stay in float, and a note says which.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "torchscript_module"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"dynamic_int8"})}
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 2

    scheme: Literal["dynamic_int8"] = Field("dynamic_int8", description="int8 weights, float between layers")
    io: Literal["float32", "int8"] = Field(
        "float32", description="dtype of inputs and outputs; dynamic int8 has float32 only"
    )
    per_channel: bool = Field(
        True, description="a scale per output of each linear layer; recurrent layers have one per matrix"
    )
    layers: dict[str, Literal["int8", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {classifier.*: float32}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"dynamic int8 takes and gives float32 by its nature, not {io}")
        return io

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: when the program cannot be read, this torch has no qnnpack engine, a pattern fits no
                layer, or no layer can be quantized.
        """
        import torch

        torch_runtimes.demand_qnnpack()
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        lifted = torch_to_modules.with_modules(graph, recurrent=True)
        chosen = self._chosen(graph, lifted, context)
        path = context.folder / "model.pt"
        with torch_engine.quiet(), torch_engine.mobile_engine(), torch.no_grad():
            from torch.ao import quantization

            linear = (
                quantization.per_channel_dynamic_qconfig
                if self.per_channel
                else quantization.default_dynamic_qconfig
            )
            configs = {
                f"{torch_to_modules.PREFIX}{layer.node}": linear
                if layer.kind == "linear"
                else quantization.default_dynamic_qconfig
                for layer in chosen
            }
            quantized = quantization.quantize_dynamic(lifted, configs)
            torch_script.save_script(torch_script.trace(quantized, inputs), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)

    def _chosen(self, graph: "GraphModule", lifted: Any, context: Context) -> list[Quantizable]:
        every = torch_overrides.quantizable(graph, WEIGHTED | KERNELS)
        modules = dict(lifted.named_modules())
        able = [
            layer
            for layer in every
            if layer.kind in KERNELS and f"{torch_to_modules.PREFIX}{layer.node}" in modules
        ]
        asked = torch_overrides.precisions(every, self.layers)
        unable = [layer for layer in every if layer not in able]
        if refused := [f"{layer.name} ({layer.kind})" for layer in unable if asked.get(layer.name) == "int8"]:
            raise StageError(
                f"TorchScript has no dynamic int8 kernel for {named(refused)}",
                fix="leave these out of 'layers', or choose scheme int8",
            )
        chosen = [layer for layer in able if asked.get(layer.name) != "float32"]
        if not chosen:
            kinds = ", ".join(sorted({layer.kind for layer in every})) or "no layers with weights"
            what = "'layers' leaves all of them in float" if able else f"this model has {kinds}"
            raise StageError(
                f"TorchScript has dynamic int8 for linear, LSTM and GRU layers only, and {what}",
                fix="choose scheme int8, or leave torchscript out for this variant",
            )
        if rest := [f"{layer.name} ({layer.kind})" for layer in unable if layer.name not in asked]:
            context.note(
                f"dynamic int8: {len(chosen)} of {len(every)} layers; TorchScript has no such kernel for "
                f"{named(rest)}, which stay in float"
            )
        return chosen
