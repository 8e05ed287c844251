"""Empirical bias correction: compensate the shift of each layer's mean output by weight rounding."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import layer_by_layer as torch_layer_by_layer
from edgeopt.formats.torch.quantize import grid as torch_grid
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch

    from edgeopt.formats.torch.graph.layers import Layer
    from edgeopt.formats.torch.lab.layer_by_layer import LayerSamples

SHOWN = 5


class CorrectBias(Stage):
    """Add to each bias the shift of the mean output that quantizing the weights will cause.

    Layers are corrected in order, each on inputs from the layers already quantized and corrected: the
    correction is the mean output per channel of the float model minus that with quantized weights. The
    weights do not change, so the result is a float model whose outputs are shifted *against* the expected
    error: slightly less accurate than its source as it is, more accurate once quantized. ``bits`` and
    ``per_channel`` must match the later quantization.

    ``rounding`` already corrects the biases while it learns the weights and leaves no shift to correct.
    Source: Nagel et al. 2019, arXiv:1906.04721, appendix D (empirical bias correction).
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"bias_correction": frozenset({"empirical"})}
    needs_calibration: ClassVar[bool] = True
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster", "finetune", "equalize", "rounding"})
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    scheme: Literal["empirical"] = Field("empirical", description="measured on the calibration data")
    bits: int = Field(
        8, ge=torch_grid.LOW, le=torch_grid.HIGH, description="bit width of the quantized weights"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    samples: int = Field(256, ge=1, description="maximum number of calibration samples, drawn from all")

    def run(self, model: Model, context: Context) -> Model:
        """Correct the biases of one program.

        Raises:
            StageError: the model has no layer with weights, or the calibration data are missing or unusable.
        """
        graph, inputs = torch_program.plain_graph(model)
        count = len(torch_layers.layers(graph))
        if not count:
            raise StageError(
                "the model has no convolution or linear layer whose bias can be corrected",
                fix="leave bias_correction out of this variant",
            )
        if context.calibration is None:
            raise StageError(
                "bias correction needs calibration data", fix="add 'data: {calibration: ...}' to the recipe"
            )
        described = model.model_copy(update={"inputs": inputs})
        samples = torch_layer_by_layer.draw(
            context.calibration.inputs(described), inputs, torch_layer_by_layer.fitting(graph, self.samples)
        )
        context.progress(f"correcting the biases of {count} layers on {len(samples)} samples")
        shifts: dict[str, float] = {}

        def correct(layer: "Layer", seen: "LayerSamples") -> "tuple[torch.Tensor, torch.Tensor]":
            weight, bias = layer.weight(graph), layer.bias(graph)
            rounded = torch_grid.nearest(weight, self.bits, self.per_channel)
            quantized = (layer.apply(x, rounded, bias) for x in seen.inputs)
            shift = _mean(layer, seen.outputs) - _mean(layer, quantized)
            magnitude = _mean(layer, (output.abs() for output in seen.outputs))
            shifts[layer.name] = float(shift.abs().mean() / magnitude.mean().clamp_min(1e-30))
            corrected = (bias + shift).to(bias.dtype)
            layer.set_bias(graph, corrected)
            # The graph keeps its float weights; only the layers downstream see the rounded ones.
            return rounded, corrected

        with torch_engine.one_thread():
            torch_layer_by_layer.visit_layers(graph, samples, correct)
        graph.recompile()
        for line in _notes(shifts, torch_layers.others(graph)):
            context.note(line)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _mean(layer: "Layer", outputs: "Iterable[torch.Tensor]") -> "torch.Tensor":
    """Mean per channel over samples of equal size."""
    import torch

    return torch.stack([layer.mean(output) for output in outputs]).mean(0)


def _notes(shifts: dict[str, float], others: list[str]) -> list[str]:
    worst = sorted(shifts, key=lambda name: -shifts[name])[:SHOWN]
    lines = [
        f"corrected the biases of {len(shifts)} layers; mean shift relative to the mean output: "
        + ", ".join(f"{name} {shifts[name]:.2%}" for name in worst)
        + (", less in the others" if len(shifts) > SHOWN else "")
    ]
    if others:
        lines.append(f"biases not corrected: {', '.join(others)}")
    return lines
