"""Dynamic int8 quantization of an exported program for TorchScript."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import WEIGHTED
from edgeopt.formats.torch.graph.recurrent import GATES
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
    """Quantize linear, LSTM and GRU layers with ``torch.ao.quantization.quantize_dynamic`` for qnnpack.

    Needs no calibration data: activations are quantized at run time. A note lists the layers left in float.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "torchscript_module"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"dynamic_int8"})}
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 3

    scheme: Literal["dynamic_int8"] = Field("dynamic_int8", description="int8 weights, float between layers")
    io: Literal["float32", "int8"] = Field(
        "float32", description="dtype of inputs and outputs; dynamic int8 supports float32 only"
    )
    per_channel: bool = Field(
        True, description="one scale per output of linear layers; recurrent layers always have one per matrix"
    )
    layers: dict[str, Literal["int8", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {classifier.*: float32}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"the inputs and outputs of dynamic int8 are float32, not {io}")
        return io

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: the program cannot be read, this torch has no qnnpack engine, a pattern matches no
                layer, or no layer can be quantized.
        """
        import torch

        torch_runtimes.require_qnnpack()
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        modular = torch_to_modules.with_modules(graph, recurrent=True)
        chosen = self._select(graph, modular, context)
        path = context.folder / "model.pt"
        with torch_engine.quiet(), torch_engine.mobile_engine(), torch.no_grad():
            from torch.ao import quantization

            # torch's dynamic recurrent layers accept one scale per matrix only.
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
            quantized = quantization.quantize_dynamic(modular, configs)
            torch_script.save_script(torch_script.trace(quantized, inputs), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)

    def _select(self, graph: "GraphModule", modular: Any, context: Context) -> list[Quantizable]:
        layers = torch_overrides.quantizable(graph, WEIGHTED | KERNELS | GATES.keys())
        modules = dict(modular.named_modules())
        supported = [
            layer
            for layer in layers
            if layer.kind in KERNELS and f"{torch_to_modules.PREFIX}{layer.node}" in modules
        ]
        requested = torch_overrides.precisions(layers, self.layers)
        unsupported = [layer for layer in layers if layer not in supported]
        refused = [
            f"{layer.name} ({layer.kind})" for layer in unsupported if requested.get(layer.name) == "int8"
        ]
        if refused:
            raise StageError(
                f"TorchScript has no dynamic int8 kernel for {named(refused)}",
                fix="remove them from 'layers', or choose scheme int8",
            )
        chosen = [layer for layer in supported if requested.get(layer.name) != "float32"]
        if not chosen:
            kinds = ", ".join(sorted({layer.kind for layer in layers})) or "no layers with weights"
            reason = "'layers' keeps all of them in float" if supported else f"this model has {kinds}"
            raise StageError(
                f"TorchScript supports dynamic int8 for linear, LSTM and GRU layers only, and {reason}",
                fix="choose scheme int8, or put the variant in a recipe without torchscript",
            )
        if rest := [f"{layer.name} ({layer.kind})" for layer in unsupported if layer.name not in requested]:
            context.note(
                f"dynamic int8: {len(chosen)} of {len(layers)} layers; TorchScript has no kernel for "
                f"{named(rest)}, which stay in float"
            )
        return chosen
