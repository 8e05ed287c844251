"""An exported program in int8 for XNNPACK, by PyTorch 2 export quantization (pt2e)."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import lowering as torch_lowering
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.graph.to_modules import RECURRENT
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.quantize import ranges as torch_ranges
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages._torch_int8 import Program, TorchInt8, calibration

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

KINDS = WEIGHTED | frozenset(RECURRENT)

SMALLEST_SCALE = 2**-12
"""As in ExecuTorch's own configuration for XNNPACK."""


class QuantizeXnnpack(TorchInt8):
    """Static int8: weights symmetric, activations per tensor from calibration.

    The result still computes in float between quantize and dequantize operators, which ExecuTorch turns
    into int8 kernels. Method: torchao's ``prepare_pt2e`` and ``convert_pt2e`` with the
    ``XNNPACKQuantizer`` of ExecuTorch. Calibration keeps a histogram per value, so memory does not grow
    with the number of samples. ``mixed`` is int8 with as few layers in float as keep the accuracy.
    """

    produces: ClassVar[str] = "exported_program_xnnpack"
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"
    revision: ClassVar[int] = 3

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: when the program cannot be read, calibration data are missing, a pattern fits no
                layer, or a layer stays in float.
        """
        samples = calibration(context)
        graph, inputs = torch_program.plain_graph(model)
        described = model.model_copy(update={"inputs": inputs})
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        with torch_engine.quiet(), torch_engine.one_thread():
            job = _Pt2e(self, graph, inputs, context.folder)
            job.calibrate(samples.inputs(described))
            context.progress(f"calibrated with {job.ranges.samples} samples")
            if job.ranges.remark:
                context.note(job.ranges.remark)
            path = context.folder / "model.pt2"
            torch_program.write(job.program(self.kept_in_float(job, described, context)), path)
            job.trial.unlink(missing_ok=True)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)


class _Pt2e(Program):
    """One program with its ranges."""

    def __init__(
        self, options: QuantizeXnnpack, graph: "GraphModule", inputs: Sequence[TensorSpec], folder: Path
    ) -> None:
        super().__init__(options, graph, inputs, folder / "trial.pte", KINDS)
        self.ranges = torch_ranges.Ranges({}, 0)
        self.module: Any = torch_program.export(graph, inputs).module(check_guards=False)

    def calibrate(self, samples: Any) -> None:
        """See the ranges, under the names that values have where they are needed."""
        self.ranges = torch_ranges.see(self.module, samples, self.options.calibrator, self.options.percentile)

    def make(self, raised: frozenset[str]) -> Path:
        self.trial.write_bytes(torch_lowering.lower(self.program(raised)))
        return self.trial

    def load(self, path: Path) -> Any:
        return torch_runtimes.load_executorch(path.read_bytes())

    def program(self, raised: frozenset[str]) -> "ExportedProgram":
        """The program in int8, with the layers of the options and ``raised`` in float.

        Raises:
            StageError: another layer would stay in float.
        """
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        exempt = self.exempt(raised)
        quantizer = XNNPACKQuantizer().set_global(_config(self.options.per_channel))
        quantizer.set_filter_function(lambda node: node.name not in exempt)
        prepared = prepare_pt2e(copy.deepcopy(self.module), quantizer)
        torch_ranges.give(prepared, self.ranges)
        converted = convert_pt2e(prepared)
        refuse_float(converted, exempt, self.names)
        return torch_program.export(converted, self.inputs)


def _config(per_channel: bool) -> Any:
    """ExecuTorch's symmetric configuration, with observers that keep the range they are given."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    own = get_symmetric_quantization_config(is_per_channel=per_channel)
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=SMALLEST_SCALE),
    )
    return type(own)(activation, activation, own.weight, own.bias, own.is_qat)


def refuse_float(module: Any, exempt: set[str], names: Mapping[str, str]) -> None:
    """Raise for layers, other than those called ``exempt``, whose input or weight is not int8.

    ``names`` are the layers' names to users, by those of their nodes.
    """
    left = [
        node
        for node in module.graph.nodes
        if operator_name(node) in KINDS
        and node.name not in exempt
        and not all("dequantize" in str(getattr(source, "target", "")) for source in node.args[:2])
    ]
    if left:
        called = [names.get(node.name, node.name) for node in left]
        weights = [getattr(node.args[1], "name", "states") for node in left]
        shown = [f"{name} ({weight})" for name, weight in zip(called, weights, strict=True)]
        raise StageError(
            f"int8 was asked for, and these layers would stay in float: {', '.join(shown)}",
            fix=f"the XNNPACK quantizer does not know their kind; say so with layers: {{{called[0]!r}: "
            "float32}, or leave executorch out for this variant",
        )
