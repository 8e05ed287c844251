"""Cross-layer equalization of the float model, before any format-specific quantization."""

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
from edgeopt.formats.torch.quantize import smoothing as torch_smoothing
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

CHECKED = 32
"""Number of samples on which the outputs before and after equalization are compared."""

MOST_ERROR = 1e-3
"""Relative to the largest output: far above float rounding error, far below the effect of a wrong scale."""

SHOWN = 12


class Equalize(Stage):
    """Rescale the channels between consecutive layers so that one weight scale fits all of them.

    A pair consists of two convolution or linear layers connected only by ReLU-like activations, pooling,
    padding and data movement, whose intermediate tensor has no other consumer; in a residual network the
    pairs are inside the blocks. The outputs do not change beyond float rounding, which is checked. A
    clipped ReLU, such as ReLU6, is replaced by ReLU if no calibration sample reaches its upper bound;
    otherwise the pair is skipped, with a note in the report.

    The gain is largest for per-tensor weight quantization; with per-channel weights, equalization still
    balances the channel ranges of activations. Source: Nagel et al. 2019, arXiv:1906.04721.

    In transformers, the channels between a layer normalization and the linear layers after it are rescaled
    as well (`smoothing`, after SmoothQuant), which needs no such activation.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"equalize": frozenset({"cross_layer"})}
    needs_calibration: ClassVar[bool] = True
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster", "finetune"})
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 2

    scheme: Literal["cross_layer"] = Field("cross_layer", description="between pairs of consecutive layers")

    def run(self, model: Model, context: Context) -> Model:
        """Equalize one program.

        Raises:
            StageError: the model has no pair to equalize, the calibration data are unusable, or the
                outputs changed.
        """
        graph, inputs = torch_program.plain_graph(model)
        pairs = torch_chains.pairs(graph)
        samples = _check_samples(inputs, context)
        with torch_engine.one_thread():
            values, clipped = _ranges(graph, pairs, inputs, context)
            chosen, skipped = _without_upper_bound(pairs, clipped)
            # Equalization preserves the function in exact arithmetic; this verifies it in float32.
            before = _outputs(graph, samples)
            smoothed = torch_smoothing.smooth(graph)
            if not chosen and not smoothed:
                raise StageError(
                    "the model has no pair of layers that can be equalized"
                    + (f": {skipped[0]}" if skipped else ""),
                    fix="leave equalize out of this variant, or quantize the weights per channel",
                )
            done = torch_equalization.equalize(graph, chosen, values)
            for pair in chosen:
                if pair.clipped is not None:
                    _remove_upper_bound(pair.clipped)
            graph.recompile()
            _check_unchanged(before, _outputs(graph, samples))
        if smoothed:
            context.note(
                f"{len(smoothed)} layer normalizations rescaled with the linear layers that read them"
            )
        for line in (*(_notes(done, chosen) if done else ()), *skipped):
            context.note(line)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _check_samples(inputs: tuple[TensorSpec, ...], context: Context) -> "list[tuple[torch.Tensor, ...]]":
    import torch

    if context.calibration is not None:
        return torch_layer_by_layer.draw(
            islice(context.calibration.inputs(_feed_model(inputs)), CHECKED), inputs, CHECKED
        )
    generator = torch.Generator().manual_seed(0)
    shapes = [tuple(int(size or 1) for size in spec.shape) for spec in inputs]
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(CHECKED)]


def _feed_model(inputs: tuple[TensorSpec, ...]) -> Model:
    """Stand-in model from which a feed takes the order and layout of the inputs."""
    return Model(format="exported_program", path=Path(), inputs=inputs)


def _ranges(
    graph: "GraphModule", pairs: list[Pair], inputs: tuple[TensorSpec, ...], context: Context
) -> "tuple[dict[str, torch.Tensor], dict[Any, float]]":
    """Largest magnitude per channel between each pair, and the largest input of each clipped activation."""
    if context.calibration is None or not pairs:
        return {}, {}
    context.progress(f"finding the ranges of {len(pairs)} tensors")
    axes = {pair.between: pair.first.axis for pair in pairs}
    axes |= {pair.clipped.args[0]: pair.first.axis for pair in pairs if pair.clipped is not None}
    ranges = torch_channel_ranges.channel_ranges(graph, axes, _calibration_samples(inputs, context))
    values = {pair.name: ranges[pair.between] for pair in pairs}
    reached = {
        pair.clipped: float(ranges[pair.clipped.args[0]].max()) for pair in pairs if pair.clipped is not None
    }
    return values, reached


def _calibration_samples(
    inputs: tuple[TensorSpec, ...], context: Context
) -> "Iterator[tuple[torch.Tensor, ...]]":
    assert context.calibration is not None
    for values in context.calibration.inputs(_feed_model(inputs)):
        yield from torch_layer_by_layer.draw([values], inputs, 1)


def _without_upper_bound(pairs: list[Pair], reached: Mapping[Any, float]) -> tuple[list[Pair], list[str]]:
    """The pairs whose upper bound can be dropped, and a note on each other pair.

    Scaling a channel commutes with ReLU but not with a clip at a fixed value.
    """
    chosen, skipped = [], []
    for pair in pairs:
        largest = reached.get(pair.clipped)
        if pair.clipped is None or (largest is not None and largest < pair.ceiling):
            chosen.append(pair)
        else:
            reason = "has no calibration data" if largest is None else f"clips values up to {largest:.3g}"
            skipped.append(f"not equalized: {pair.name}, whose upper bound {pair.ceiling:g} {reason}")
    return chosen, skipped


def _remove_upper_bound(node: Any) -> None:
    import torch

    node.target = torch.ops.aten.relu.default
    node.args, node.kwargs = node.args[:1], {}


def _outputs(graph: "GraphModule", samples: "list[tuple[torch.Tensor, ...]]") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        first = [graph(*sample) for sample in samples]
    return torch.stack([value[0] if isinstance(value, tuple) else value for value in first])


def _check_unchanged(before: "torch.Tensor", after: "torch.Tensor") -> None:
    error = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    if not error < MOST_ERROR:
        raise StageError(
            f"equalization changed the outputs by {error:.2g}, relative to the largest",
            fix="leave equalize out of this variant: the weights exceed the precision of float32",
        )


def _notes(done: list[torch_equalization.Equalized], chosen: list[Pair]) -> Iterator[str]:
    worst = sorted(done, key=lambda item: -item.before)
    shown = ", ".join(f"{item.pair.name} {item.before:.3g}x to {item.after:.3g}x" for item in worst[:SHOWN])
    more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    yield f"equalized {len(done)} pairs of layers; spread of the channel ranges: {shown}{more}"
    replaced = [pair.name for pair in chosen if pair.clipped is not None]
    if replaced:
        yield (
            "replaced a clipped ReLU, whose upper bound no calibration sample reaches, by ReLU between: "
            + ", ".join(replaced)
        )
