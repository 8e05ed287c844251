"""Static int8 quantization of an exported program for TorchScript, by FX graph mode quantization."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.quantize import ceilings as torch_ceilings
from edgeopt.formats.torch.quantize import fx as torch_fx
from edgeopt.formats.torch.quantize import ranges as torch_ranges
from edgeopt.formats.torch.quantize import recurrent as torch_recurrent
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages._torch_int8 import Program, TorchInt8, calibration

if TYPE_CHECKING:
    from torch.fx import GraphModule


class QuantizeFx(TorchInt8):
    """Static int8 for the qnnpack engine: symmetric weights, activations quantized per tensor.

    The program's operators are first rewritten as the modules and functions that FX quantization supports.
    Calibration keeps one histogram per tensor, so memory does not grow with the number of samples.
    ``mixed`` is int8 with the fewest layers in float that preserve the accuracy.
    """

    produces: ClassVar[str] = "torchscript_module"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 8

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: the program cannot be read, calibration data are missing, this torch has no qnnpack
                engine, a pattern matches no layer, or a layer has no int8 kernel or stays in float.
        """
        import torch

        samples = calibration(context)
        torch_runtimes.require_qnnpack()
        graph, inputs = torch_program.plain_graph(model)
        described = model.model_copy(update={"inputs": inputs})
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        with (
            torch_engine.quiet(),
            torch_engine.mobile_engine(),
            torch_engine.one_thread(),
            torch.no_grad(),
        ):
            ranges = torch_ranges.observe(
                torch_to_modules.with_modules(graph),
                samples.inputs(described),
                self.calibrator,
                self.percentile,
            )
            context.progress(f"calibrated with {ranges.samples} samples")
            if ranges.remark:
                context.note(ranges.remark)
            quantizing = _Fx(self, graph, inputs, ranges, context.folder)
            path = context.folder / "model.pt"
            in_float = self.kept_in_float(quantizing, described, context)
            if torch_recurrent.nodes(graph).keys() - quantizing.exempt(in_float):
                context.note(torch_recurrent.NOTE)
            torch_script.save_script(quantizing.script(in_float), path)
            quantizing.trial.unlink(missing_ok=True)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)


class _Fx(Program):
    """One program with its calibrated activation ranges."""

    def __init__(
        self,
        options: QuantizeFx,
        graph: "GraphModule",
        inputs: Sequence[TensorSpec],
        ranges: torch_ranges.Ranges,
        folder: Path,
    ) -> None:
        super().__init__(options, graph, inputs, folder / "trial.ptl", torch_fx.KINDS)
        self.ranges = ranges

    def make(self, raised: frozenset[str]) -> Path:
        torch_script.save_script(self.script(raised), self.trial, lite=True)
        return self.trial

    def load(self, path: Path) -> Any:
        return torch_runtimes.load_lite(path)

    def script(self, raised: frozenset[str]) -> Any:
        """The TorchScript module in int8, with the layers of the options and ``raised`` in float.

        Raises:
            StageError: another layer would stay in float, or qnnpack cannot run the model.
        """
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        exempt = self.exempt(raised)
        self.refuse_volumes(exempt, "torchscript")
        modular = torch_to_modules.with_modules(self.graph)
        torch_ceilings.replace(modular, exempt)
        mapping = torch_fx.qconfig_mapping(self.options.per_channel, modular, exempt)
        # A copy: prepare_fx works in place, and `modular` is the reference for names and checks below.
        prepared = prepare_fx(copy.deepcopy(modular), mapping, torch_specs.zeros(self.inputs))
        torch_fx.free_inputs(prepared)
        names = torch_fx.value_names(modular, prepared)
        torch_ranges.assign(prepared, self.ranges, lambda node: names[node.name])
        try:
            converted = convert_fx(prepared)
        except RuntimeError as error:
            raise StageError(
                f"FX quantization cannot convert this selection of layers: {str(error).strip()}",
                fix="choose other layers, or put the variant in a recipe without torchscript",
            ) from error
        in_loops = torch_recurrent.nodes(modular)
        torch_fx.refuse_float(modular, converted, exempt | in_loops.keys(), self.names)
        torch_recurrent.to_int8(converted, modular, exempt)
        try:
            return torch_script.trace(converted, self.inputs)
        except RuntimeError as error:
            raise StageError(
                f"qnnpack cannot run the int8 model: {str(error).strip().splitlines()[-1]}",
                fix="put the variant in a recipe without torchscript",
            ) from error
