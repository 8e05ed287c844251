"""Weights rounded to the integers that keep each layer's output, before the formats' quantizers see them."""

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
    from edgeopt.formats.torch.lab.layer_by_layer import Seen

SAY_EVERY = 3.0
"""Seconds between two lines of progress."""


class RoundWeights(Stage):
    """Put the weights of every layer on its int8 grid, each rounded up or down as AdaRound learns it.

    The result is a float model whose weights are integers times a scale per channel (or tensor). The
    largest weight of each channel is the largest integer, so whatever symmetric quantizer comes after finds
    that scale and those integers again; ``bits`` and ``per_channel`` must be those that it will use.
    Layers are learned in order, on inputs from the layers already rounded, against the outputs of the float
    model; what rounding leaves of a shift in the mean goes into the bias.

    At 8 bits per channel there is little to win; it is for fewer bits, and for one scale per tensor.
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
        8, ge=torch_grid.LOW, le=torch_grid.HIGH, description="of the weights when they are quantized"
    )
    layers: dict[str, Annotated[int, Field(ge=torch_grid.LOW, le=torch_grid.HIGH)]] = Field(
        {}, description="bits of layers by name or pattern, instead of those for all"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per tensor")
    clip: bool = Field(True, description="also try scales below that of the largest weight")
    bias: bool = Field(True, description="let the bias make up for a shift of the mean output")
    iterations: int = Field(1000, ge=0, description="steps of gradient descent per layer")
    samples: int = Field(256, ge=1, description="at most so many calibration samples, drawn from all")

    def run(self, model: Model, context: Context) -> Model:
        """Round the weights of one program.

        Raises:
            StageError: it has no layer with weights, a pattern in ``layers`` fits none, or the calibration
                data are missing or unusable.
        """
        graph, inputs = torch_program.plain_graph(model)
        count = len(torch_layers.layers(graph))
        if not count:
            raise StageError(
                "the model has no convolution or linear layer whose weights could be rounded",
                fix="leave rounding out of this variant",
            )
        if context.calibration is None:
            raise StageError(
                "rounding needs calibration data", fix="add 'data: {calibration: ...}' to the recipe"
            )
        known = torch_overrides.quantizable(graph)
        said = torch_overrides.precisions(known, self.layers)
        bits = {layer.node: said[layer.name] for layer in known if layer.name in said}
        described = model.model_copy(update={"inputs": inputs})
        samples = torch_layer_by_layer.draw(
            context.calibration.inputs(described), inputs, torch_layer_by_layer.fitting(graph, self.samples)
        )
        done: list[torch_adaround.Rounded] = []
        told = time.monotonic()

        def learn(layer: "Layer", seen: "Seen") -> "tuple[torch.Tensor, torch.Tensor]":
            nonlocal told
            if not done or time.monotonic() - told > SAY_EVERY:
                told = time.monotonic()
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
                layer.set_bias(graph, bias + moments.missing(learned))
            layer.set_weight(graph, learned.reshape(weight.shape))
            return layer.weight(graph), layer.bias(graph)

        with torch_engine.one_thread():
            torch_layer_by_layer.walk(graph, samples, learn)
        graph.recompile()
        for line in _told(done, torch_layers.others(graph)):
            context.note(line)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _told(done: list[torch_adaround.Rounded], others: list[str]) -> list[str]:
    nearest = sum(rounded.nearest for rounded in done) / len(done)
    learned = sum(rounded.learned for rounded in done) / len(done)
    lines = [
        f"rounded the weights of {len(done)} layers: mean squared error of their outputs {learned:.2e} of "
        f"the power, {nearest:.2e} when rounded to nearest"
    ]
    if others:
        lines.append(f"weights not rounded: {', '.join(others)}")
    return lines
