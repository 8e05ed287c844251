"""Correction of the shift that rounding the weights puts on a layer's mean output."""

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
    from edgeopt.formats.torch.lab.layer_by_layer import Seen

SHOWN = 5


class CorrectBias(Stage):
    """Change each bias by what rounding the weights will take from the layer's mean output.

    Layer by layer, with all layers before quantized and corrected, the mean output per channel of the
    float model less that with quantized weights is added to the bias. The weights stay as they are, so the
    model that comes out is a float model whose outputs are shifted *against* the coming error: by itself it
    is a little worse than the one that went in, quantized it is better. ``bits`` and ``per_channel`` must
    be those with which it will be quantized.

    ``rounding`` corrects the biases by itself, as it learns the weights; after it there is nothing left to
    correct. Source: Nagel et al. 2019, arXiv:1906.04721, appendix D (empirical bias correction).
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"bias_correction": frozenset({"empirical"})}
    needs_calibration: ClassVar[bool] = True
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster", "finetune", "equalize", "rounding"})
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    scheme: Literal["empirical"] = Field("empirical", description="from the calibration data")
    bits: int = Field(
        8, ge=torch_grid.LOW, le=torch_grid.HIGH, description="of the weights when they are quantized"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    samples: int = Field(256, ge=1, description="at most so many calibration samples, drawn from all")

    def run(self, model: Model, context: Context) -> Model:
        """Correct the biases of one program.

        Raises:
            StageError: it has no layer with weights, or the calibration data are missing or unusable.
        """
        graph, inputs = torch_program.plain_graph(model)
        count = len(torch_layers.layers(graph))
        if not count:
            raise StageError(
                "the model has no convolution or linear layer whose bias could be corrected",
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

        def correct(layer: "Layer", seen: "Seen") -> "tuple[torch.Tensor, torch.Tensor]":
            weight, bias = layer.weight(graph), layer.bias(graph)
            rounded = torch_grid.nearest(weight, self.bits, self.per_channel)
            made = (layer.apply(x, rounded, bias) for x in seen.inputs)
            shift = _mean(layer, seen.outputs) - _mean(layer, made)
            size = _mean(layer, (output.abs() for output in seen.outputs))
            shifts[layer.name] = float(shift.abs().mean() / size.mean().clamp_min(1e-30))
            corrected = (bias + shift).to(bias.dtype)
            layer.set_bias(graph, corrected)
            return rounded, corrected

        with torch_engine.one_thread():
            torch_layer_by_layer.walk(graph, samples, correct)
        graph.recompile()
        for line in _told(shifts, torch_layers.others(graph)):
            context.note(line)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _mean(layer: "Layer", outputs: "Iterable[torch.Tensor]") -> "torch.Tensor":
    """Mean of each channel over samples of equal size."""
    import torch

    return torch.stack([layer.mean(output) for output in outputs]).mean(0)


def _told(shifts: dict[str, float], others: list[str]) -> list[str]:
    worst = sorted(shifts, key=lambda name: -shifts[name])[:SHOWN]
    lines = [
        f"corrected the biases of {len(shifts)} layers, mean shift as a share of the mean output: "
        + ", ".join(f"{name} {shifts[name]:.2%}" for name in worst)
        + (", the others less" if len(shifts) > SHOWN else "")
    ]
    if others:
        lines.append(f"biases left as they are: {', '.join(others)}")
    return lines
