"""An exported program in int8 for TorchScript, by FX graph mode quantization."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.calibration import Calibrator
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import to_modules as torch_lifting
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.quantize import fx as torch_fx
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.formats.torch.quantize import ranges as torch_ranges
from edgeopt.model import Array, Model, TensorSpec
from edgeopt.plugin import Context, Worker
from edgeopt.stages._search import Searching, evidence, search

if TYPE_CHECKING:
    from torch.fx import GraphModule


class QuantizeFx(Searching):
    """Static int8 for the qnnpack engine: weights symmetric, activations per tensor from calibration.

    The program's operators are first written as the modules and functions that FX quantization knows.
    Calibration keeps a histogram per value, so memory does not grow with the number of samples. ``mixed``
    is int8 with as few layers in float as keep the accuracy.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "torchscript_module"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"int8", "mixed"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 3

    scheme: Literal["int8", "mixed"] = Field(
        "int8", description="int8 weights and activations; mixed: int8 with max_drop"
    )
    io: Literal["float32", "int8"] = Field(
        "float32", description="dtype of inputs and outputs; TorchScript has float32 only"
    )
    per_channel: bool = Field(True, description="a scale per output channel of each weight, not per layer")
    calibrator: Calibrator = Field(
        "mse",
        description="how activation ranges are found; mse: of least squared error, by torch's search",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="share of values, in percent, that 'percentile' covers"
    )
    layers: dict[str, Literal["int8", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {layer1.0.*: float32}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"torchscript takes and gives float32 only, not {io}")
        return io

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: when the program cannot be read, calibration data are missing, this torch has no
                qnnpack engine, a pattern fits no layer, or a layer has no int8 kernel or stays in float.
        """
        import torch

        if context.calibration is None:
            raise StageError("quantizing needs calibration data", fix="give 'data.calibration' in the recipe")
        torch_runtimes.demand_qnnpack()
        graph, inputs = torch_program.plain_graph(model)
        described = model.model_copy(update={"inputs": inputs})
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        with (
            torch_engine.quiet(),
            torch_engine.mobile_engine(),
            torch_engine.one_thread(),
            torch.no_grad(),
        ):
            ranges = torch_ranges.see(
                torch_lifting.with_modules(graph),
                context.calibration.inputs(described),
                self.calibrator,
                self.percentile,
            )
            context.progress(f"calibrated with {ranges.samples} samples")
            if ranges.remark:
                context.note(ranges.remark)
            job = _Fx(self, graph, inputs, ranges, context.folder)
            path = context.folder / "model.pt"
            torch_script.save_script(job.script(self._raised(job, described, context)), path)
            job.trial.unlink(missing_ok=True)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)

    def _raised(self, job: "_Fx", model: Model, context: Context) -> frozenset[str]:
        if self.allowed_drop is None:
            return frozenset()
        job.samples, labels = evidence(model, context)
        return search(job, labels, max_drop=self.allowed_drop, budget=self.budget, context=context)


class _Fx:
    """One program with its ranges, quantized again and again with other layers left in float."""

    def __init__(
        self,
        options: QuantizeFx,
        graph: "GraphModule",
        inputs: Sequence[TensorSpec],
        ranges: torch_ranges.Ranges,
        folder: Path,
    ) -> None:
        self.options = options
        self.graph = graph
        self.inputs = inputs
        self.ranges = ranges
        self.trial = folder / "trial.ptl"
        self.samples: list[tuple[Array, ...]] = []
        self.all = torch_overrides.quantizable(graph, torch_fx.KINDS)
        asked = torch_overrides.precisions(self.all, options.layers)
        self.float = frozenset(name for name, precision in asked.items() if precision == "float32")

    @property
    def layers(self) -> Mapping[str, int]:
        return {layer.name: layer.growth for layer in self.all if layer.name not in self.float}

    def make(self, raised: frozenset[str]) -> Path:
        torch_script.save_script(self.script(raised), self.trial, lite=True)
        return self.trial

    def outputs(self, path: Path | None) -> NDArray[np.float32]:
        run = self.graph if path is None else torch_runtimes.load_lite(path)
        return torch_runtimes.first_outputs(run, self.samples)

    def script(self, raised: frozenset[str]) -> Any:
        """The TorchScript module in int8, with the layers of the options and ``raised`` in float.

        Raises:
            StageError: another layer would stay in float, or qnnpack cannot run the model.
        """
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        exempt = {layer.node for layer in self.all if layer.name in self.float | raised}
        lifted = torch_lifting.with_modules(self.graph)
        mapping = torch_fx.mapping_of(self.options.per_channel, lifted, exempt)
        prepared = prepare_fx(copy.deepcopy(lifted), mapping, torch_specs.zeros(self.inputs))
        names = torch_fx.value_names(lifted, prepared)
        torch_ranges.give(prepared, self.ranges, lambda node: names[node.name])
        try:
            converted = convert_fx(prepared)
        except RuntimeError as error:
            raise StageError(
                f"FX quantization cannot convert this choice of layers: {str(error).strip()}",
                fix="choose other layers, or leave torchscript out for this variant",
            ) from error
        torch_fx.refuse_float(lifted, converted, exempt, {layer.node: layer.name for layer in self.all})
        try:
            return torch_script.trace(converted, self.inputs)
        except RuntimeError as error:
            raise StageError(
                f"qnnpack cannot run the int8 model: {str(error).strip().splitlines()[-1]}",
                fix="leave torchscript out for this variant",
            ) from error
