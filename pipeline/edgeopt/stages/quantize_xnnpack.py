"""An exported program in int8 for XNNPACK, by PyTorch 2 export quantization (pt2e)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats import torch_engine, torch_operators, torch_program, torch_specs
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class QuantizeXnnpack(Stage):
    """Static int8: weights symmetric per output channel, activations per tensor from calibration.

    The result still computes in float between quantize and dequantize operators, which ExecuTorch turns
    into int8 kernels. Method: torchao's ``prepare_pt2e`` and ``convert_pt2e`` with the
    ``XNNPACKQuantizer`` of ExecuTorch. Observers keep histograms, so memory does not grow with the
    number of samples.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program_xnnpack"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"int8"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"

    scheme: Literal["int8"] = Field("int8", description="int8 weights and activations")

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: when the program cannot be read, calibration data are missing, or a convolution
                or linear layer stays in float.
        """
        import torch

        if context.calibration is None:
            raise StageError("quantizing needs calibration data", fix="give 'data.calibration' in the recipe")
        graph, inputs = torch_program.plain_graph(model)
        described = model.model_copy(update={"inputs": inputs})
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        with torch_engine.quiet():
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                XNNPACKQuantizer,
                get_symmetric_quantization_config,
            )
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            program = torch_program.export(graph, inputs)
            prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
            count = 0
            with torch.no_grad(), torch_engine.one_thread():
                for values in context.calibration.inputs(described):
                    prepared(*(torch.from_numpy(value) for value in values))
                    if not count:
                        _rest_weights(prepared)
                    count += 1
            if not count:
                raise StageError(
                    "the calibration data are empty", fix="correct 'data.calibration' in the recipe"
                )
            context.progress(f"calibrated with {count} samples")
            converted = convert_pt2e(prepared)
        refuse_float(converted)
        path = context.folder / "model.pt2"
        torch_program.write(torch_program.export(converted, inputs), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)


def _rest_weights(prepared: Any) -> None:
    """Let the observers of weights pass them on: they have seen them, and weights do not change."""
    from torchao.quantization.pt2e import PerChannelMinMaxObserver

    for module in prepared.modules():
        if isinstance(module, PerChannelMinMaxObserver):
            module.forward = lambda weight: weight


def refuse_float(module: Any) -> None:
    """Raise for convolutions and linear layers whose input or weight is not int8."""
    left = [
        f"{node.name} ({node.args[1].name})"
        for node in module.graph.nodes
        if torch_operators.operator_name(node) in torch_operators.WEIGHTED
        and not all("dequantize" in str(getattr(source, "target", "")) for source in node.args[:2])
    ]
    if left:
        raise StageError(
            f"int8 was asked for, and these layers would stay in float: {', '.join(left)}",
            fix="the XNNPACK quantizer does not know their kind; leave executorch out for this variant",
        )
