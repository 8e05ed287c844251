"""Cross-layer equalization of the float model, whichever framework and format."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import chains as torch_chains
from edgeopt.formats.torch.graph.chains import Pair
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import layer_by_layer as torch_layer_by_layer
from edgeopt.formats.torch.quantize import channel_ranges as torch_channel_ranges
from edgeopt.formats.torch.quantize import equalization as torch_equalization
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

CHECKED = 32
"""Samples on which the outputs before and after are compared."""

MOST_ERROR = 1e-3
"""Of the largest output: float rounding stays far below it, a mistake does not."""

SHOWN = 12


class Equalize(Stage):
    """Rescale channels between consecutive layers, so that one weight scale fits them all.

    Pairs of convolution and linear layers are found that are joined by nothing but ReLU-like
    activations, pooling, padding and moves of data, and whose tensor between nothing else reads: of
    a residual network these lie inside the blocks. The outputs stay as they are up to float rounding,
    which is checked. A ReLU with a ceiling, such as ReLU6, is replaced by ReLU where no calibration
    sample reaches the ceiling; elsewhere its pair is left alone, and the report says so.

    It pays most where weights are quantized per tensor; per channel, it evens out the channels of
    activations. Source: Nagel et al. 2019, arXiv:1906.04721.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"equalize": frozenset({"cross_layer"})}
    needs_calibration: ClassVar[bool] = True
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster", "finetune"})
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    scheme: Literal["cross_layer"] = Field("cross_layer", description="between pairs of consecutive layers")

    def run(self, model: Model, context: Context) -> Model:
        """Equalize one program.

        Raises:
            StageError: there is no pair to equalize, the calibration data are unusable, or the outputs
                changed.
        """
        graph, inputs = torch_program.plain_graph(model)
        found = torch_chains.pairs(graph)
        samples = _some_samples(inputs, context)
        with torch_engine.one_thread():
            values, clipped = _ranges(graph, found, inputs, context)
            chosen, left = _without_ceiling(found, clipped)
            if not chosen:
                raise StageError(
                    "no two layers of the model can be equalized" + (f": {left[0]}" if left else ""),
                    fix="leave equalize out of this variant, or quantize the weights per channel",
                )
            before = _outputs(graph, samples)
            done = torch_equalization.equalize(graph, chosen, values)
            for pair in chosen:
                if pair.clipped is not None:
                    _remove_ceiling(pair.clipped)
            graph.recompile()
            _demand_same(before, _outputs(graph, samples))
        for line in (*_told(done, chosen), *left):
            context.note(line)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _some_samples(inputs: tuple[TensorSpec, ...], context: Context) -> "list[tuple[torch.Tensor, ...]]":
    import torch

    if context.calibration is not None:
        return torch_layer_by_layer.draw(
            islice(context.calibration.inputs(_taking(inputs)), CHECKED), inputs, CHECKED
        )
    generator = torch.Generator().manual_seed(0)
    shapes = [tuple(int(size or 1) for size in spec.shape) for spec in inputs]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(CHECKED)]


def _taking(inputs: tuple[TensorSpec, ...]) -> Model:
    """What a feed arranges its samples for."""
    return Model(format="exported_program", path=Path(), inputs=inputs)


def _ranges(
    graph: "GraphModule", found: list[Pair], inputs: tuple[TensorSpec, ...], context: Context
) -> "tuple[dict[str, torch.Tensor], dict[Any, float]]":
    """Largest values of the channels between each pair, and what reaches each activation with a ceiling."""
    if context.calibration is None or not found:
        return {}, {}
    context.progress(f"finding the ranges of {len(found)} tensors")
    axes = {pair.between: pair.first.axis for pair in found}
    axes |= {pair.clipped.args[0]: pair.first.axis for pair in found if pair.clipped is not None}
    ranges = torch_channel_ranges.channel_ranges(graph, axes, _all_samples(inputs, context))
    values = {pair.name: ranges[pair.between] for pair in found}
    reached = {
        pair.clipped: float(ranges[pair.clipped.args[0]].max()) for pair in found if pair.clipped is not None
    }
    return values, reached


def _all_samples(inputs: tuple[TensorSpec, ...], context: Context) -> "Iterator[tuple[torch.Tensor, ...]]":
    assert context.calibration is not None
    for values in context.calibration.inputs(_taking(inputs)):
        yield from torch_layer_by_layer.draw([values], inputs, 1)


def _without_ceiling(found: list[Pair], reached: Mapping[Any, float]) -> tuple[list[Pair], list[str]]:
    """The pairs that are pairs once their ceiling is gone, and why the others are left alone."""
    chosen, left = [], []
    for pair in found:
        most = reached.get(pair.clipped)
        if pair.clipped is None or (most is not None and most < pair.ceiling):
            chosen.append(pair)
        else:
            why = "is not known to be free" if most is None else f"of values up to {most:.3g} is needed"
            left.append(f"not equalized: {pair.name}, where the ceiling {pair.ceiling:g} {why}")
    return chosen, left


def _remove_ceiling(node: Any) -> None:
    import torch

    node.target = torch.ops.aten.relu.default
    node.args, node.kwargs = node.args[:1], {}


def _outputs(graph: "GraphModule", samples: "list[tuple[torch.Tensor, ...]]") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        first = [graph(*sample) for sample in samples]
    return torch.stack([value[0] if isinstance(value, tuple) else value for value in first])


def _demand_same(before: "torch.Tensor", after: "torch.Tensor") -> None:
    error = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    if not error < MOST_ERROR:
        raise StageError(
            f"equalizing changed the outputs by {error:.2g} of the largest",
            fix="leave equalize out of this variant: its weights are beyond the precision of float32",
        )


def _told(done: list[torch_equalization.Equalized], chosen: list[Pair]) -> Iterator[str]:
    worst = sorted(done, key=lambda item: -item.before)
    shown = ", ".join(f"{item.pair.name} {item.before:.3g}x to {item.after:.3g}x" for item in worst[:SHOWN])
    more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    yield f"equalized {len(done)} pairs of layers, channel ranges spread: {shown}{more}"
    replaced = [pair.name for pair in chosen if pair.clipped is not None]
    if replaced:
        yield (
            "a ceiling that no calibration sample reaches was removed (ReLU in place of ReLU6) between: "
            + ", ".join(replaced)
        )
