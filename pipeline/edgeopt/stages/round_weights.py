"""Adaptive weight rounding (AdaRound) on the float model, before the quantizer of any format."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import layer_by_layer as torch_layer_by_layer
from edgeopt.formats.torch.quantize import adaround as torch_adaround
from edgeopt.formats.torch.quantize import grid as torch_grid
from edgeopt.formats.torch.quantize import moments as torch_moments
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch

    from edgeopt.formats.torch.graph.layers import Layer
    from edgeopt.formats.torch.lab.layer_by_layer import LayerSamples

PROGRESS_INTERVAL = 3.0
"""Seconds between two progress lines."""


class RoundWeights(Stage):
    """Round the weights of every layer to its integer grid, up or down as learned by AdaRound.

    The result is a float model whose weights are integers times one scale per channel (or tensor). The
    largest weight of each channel is the largest integer, so that any symmetric quantizer recovers the same
    scale and integers; ``bits`` and ``per_channel`` must match that quantizer. Layers are learned in order,
    on inputs from the layers already rounded, against the outputs of the float model; the remaining shift
    of the mean is absorbed by the bias.

    The gain is small at 8 bits per channel; use it for fewer bits, or for one scale per tensor.
    Source: Nagel et al. 2020, arXiv:2004.10568.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"rounding": frozenset({"adaround"})}
    needs_calibration: ClassVar[bool] = True
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster", "finetune", "equalize"})
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    scheme: Literal["adaround"] = Field("adaround", description="learned per weight, layer by layer")
    bits: int = Field(
        8, ge=torch_grid.LOW, le=torch_grid.HIGH, description="bit width of the quantized weights"
    )
    layers: dict[str, Annotated[int, Field(ge=torch_grid.LOW, le=torch_grid.HIGH)]] = Field(
        {}, description="bit width by layer name or pattern, overriding bits"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    clip: bool = Field(True, description="also try scales that clip the largest weights")
    bias: bool = Field(True, description="compensate the shift of the mean output in the bias")
    iterations: int = Field(1000, ge=0, description="gradient descent steps per layer")
    samples: int = Field(256, ge=1, description="maximum number of calibration samples, drawn from all")

    def run(self, model: Model, context: Context) -> Model:
        """Round the weights of one program.

        Raises:
            StageError: the model has no layer with weights, a pattern in ``layers`` matches none, or the
                calibration data are missing or unusable.
        """
        graph, inputs = torch_program.plain_graph(model)
        count = len(torch_layers.layers(graph))
        if not count:
            raise StageError(
                "the model has no convolution or linear layer whose weights can be rounded",
                fix="leave rounding out of this variant",
            )
        if context.calibration is None:
            raise StageError(
                "rounding needs calibration data", fix="add 'data: {calibration: ...}' to the recipe"
            )
        quantizable = torch_overrides.quantizable(graph)
        overrides = torch_overrides.precisions(quantizable, self.layers)
        bits = {layer.node: overrides[layer.name] for layer in quantizable if layer.name in overrides}
        described = model.model_copy(update={"inputs": inputs})
        samples = torch_layer_by_layer.draw(
            context.calibration.inputs(described), inputs, torch_layer_by_layer.fitting(graph, self.samples)
        )
        done: list[torch_adaround.Rounded] = []
        reported_at = time.monotonic()

        def learn(layer: "Layer", seen: "LayerSamples") -> "tuple[torch.Tensor, torch.Tensor]":
            nonlocal reported_at
            if not done or time.monotonic() - reported_at > PROGRESS_INTERVAL:
                reported_at = time.monotonic()
                context.progress(f"rounding {layer.name}, layer {len(done) + 1} of {count}")
            weight, bias = layer.weight(graph), layer.bias(graph)
            moments = torch_moments.gather(layer, seen, weight, bias, centred=self.bias)
            rounded = torch_adaround.round_weights(
                weight.reshape(layer.groups, -1, weight[0].numel()),
                moments,
                bits=bits.get(layer.node.name, self.bits),
                per_channel=self.per_channel,
                clip=self.clip,
                steps=self.iterations,
            )
            done.append(rounded)
            learned = rounded.codes * rounded.scale
            if self.bias:
                layer.set_bias(graph, bias + moments.bias_correction(learned))
            layer.set_weight(graph, learned.reshape(weight.shape))
            # As stored in the graph, so that the next layers learn on exactly these values.
            return layer.weight(graph), layer.bias(graph)

        with torch_engine.one_thread():
            torch_layer_by_layer.visit_layers(graph, samples, learn)
        graph.recompile()
        for line in _notes(done, torch_layers.others(graph)):
            context.note(line)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _notes(done: list[torch_adaround.Rounded], others: list[str]) -> list[str]:
    nearest = sum(rounded.nearest for rounded in done) / len(done)
    learned = sum(rounded.learned for rounded in done) / len(done)
    lines = [
        f"rounded the weights of {len(done)} layers: mean squared error of their outputs {learned:.2e} "
        f"relative to the power, against {nearest:.2e} with rounding to nearest"
    ]
    if others:
        lines.append(f"weights not rounded: {', '.join(others)}")
    return lines
