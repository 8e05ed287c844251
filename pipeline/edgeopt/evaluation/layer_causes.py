"""The causes of a quantized model's error that its layers show, with the supporting numbers. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydantic import Field

from edgeopt.evaluation.layer_statistics import LayerStatistics
from edgeopt.results.measurement import Value

Kind: TypeAlias = Literal[
    "export", "pruning", "saturation", "clipping", "weight_spread", "input_spread", "activation_spread",
    "outlier", "mixed_ranges", "kernels", "bias", "last_layer", "cost", "unknown",
]  # fmt: skip
Changes: TypeAlias = Mapping[str, Any]
"""Options to merge into a variant, and under ``data`` into the recipe's data."""

SIGNIFICANT = 0.05
"""Share of the final error from which a layer is considered a cause."""
HARMLESS_DB = 40.0
"""A layer that alone leaves the outputs this close to the float model is harmless."""
POOR_DB = 35.0
"""A layer that uses all of its eight bits exceeds this."""
CLIPPED_DB = 25.0
"""A range that is narrowed deliberately, for smaller steps, keeps a layer above this."""
SPREAD = 16.0
"""Ratio of the largest channel to the lower quartile: with one scale, a quarter of the channels has at most
8 of 127 steps. The smallest channel is no criterion: many networks have channels that are almost zero."""
OUTLIER = 4.0
"""Two of eight bits are spent on one value in a thousand (ratio to the 99.9th percentile)."""
MIXED = 8.0
DOMINANT = 0.5
ACCEPTED_DROP = 0.005
JOINING = frozenset({"concat", "cat", "concatenation", "add", "sub"})
TITLES: dict[str, str] = {
    "export": "bad export, not quantization",
    "pruning": "pruning, not quantization",
    "saturation": "saturating 8-bit accumulation on this CPU",
    "clipping": "clipped calibration",
    "weight_spread": "channel ranges of the weights",
    "input_spread": "input channel ranges of the weights",
    "activation_spread": "channel ranges of the activations",
    "outlier": "outlier activation",
    "mixed_ranges": "mixed ranges in one operator",
    "bias": "shifted mean",
    "last_layer": "last layer",
    "kernels": "kernels of the runtime, not quantization",
    "unknown": "none of the known causes",
}


class Cause(Value):
    """One cause of the error, described with the supporting numbers."""

    kind: Kind
    text: str
    layers: tuple[str, ...] = ()
    share: float = Field(0.0, description="share of the final error, over all its layers")
    remedies: tuple[dict[str, Any], ...] = Field((), description="proposed changes, best first")


def causes_of_layers(
    layers: Sequence[LayerStatistics], recalibrate: Changes | None
) -> tuple[list[LayerStatistics], list[Cause]]:
    """The layers that matter, and their causes by share of the error.

    ``recalibrate``: the change that calibrates on other data, if there are any.
    """
    by_kind: dict[Kind, list[LayerStatistics]] = {}
    harmful = [layer for layer in layers if layer.share >= SIGNIFICANT and layer.alone_snr_db < HARMLESS_DB]
    last = {layer.name for layer in _last_layers(layers)}
    for layer in harmful:
        for kind in _kinds(layer, layer.name in last):
            by_kind.setdefault(kind, []).append(layer)
    found = [_cause(kind, concerned, recalibrate) for kind, concerned in by_kind.items()]
    return harmful, sorted(found, key=lambda cause: -cause.share)


def _kinds(layer: LayerStatistics, is_last: bool) -> list[Kind]:
    """Faults of one layer; the general ones only where no specific one explains the error."""
    if layer.runtime_snr_db is not None and layer.runtime_noise > 1 and layer.runtime_snr_db < HARMLESS_DB:
        return ["saturation"]
    if layer.clipped_noise >= DOMINANT and layer.own_snr_db < CLIPPED_DB:
        return ["clipping"]
    kinds: list[Kind] = []
    if layer.weights_per_channel is False and (layer.weight_spread_quartile or 0) >= SPREAD:
        kinds.append("weight_spread")
    if (layer.weight_input_spread or 0) >= SPREAD:
        kinds.append("input_spread")
    if layer.activation_spread >= SPREAD and layer.operator != "input":  # needs a preceding layer
        kinds.append("activation_spread")
    if _mixed(layer) >= MIXED:
        kinds.append("mixed_ranges")
    if not kinds and layer.outlier >= OUTLIER and layer.own_snr_db < POOR_DB:
        kinds.append("outlier")
    if not kinds and layer.bias >= DOMINANT and layer.own_snr_db < POOR_DB:
        kinds.append("bias")
    if not kinds and is_last and layer.share >= DOMINANT:
        kinds.append("last_layer")
    return kinds


def _mixed(layer: LayerStatistics) -> float:
    """Ratio of the input ranges of an operator that joins tensors; 1 for other operators."""
    ranges = [largest for _, largest in layer.inputs if largest > 0]
    if layer.operator.lower() not in JOINING or len(ranges) < 2:
        return 1.0
    return max(ranges) / min(ranges)


def _last_layers(layers: Sequence[LayerStatistics]) -> Sequence[LayerStatistics]:
    """The last layer with weights and all layers after it; without any weights, the last layer."""
    weighted = [index for index, layer in enumerate(layers) if layer.weight_type is not None]
    return layers[weighted[-1] if weighted else len(layers) - 1 :]


def _cause(kind: Kind, layers: Sequence[LayerStatistics], recalibrate: Changes | None) -> Cause:
    """One cause for several layers; the text describes the one with the largest share."""
    ordered = sorted(layers, key=lambda layer: -layer.share)
    worst = ordered[0]
    names = tuple(layer.name for layer in ordered)
    # Only layers with weights can have their own precision in a recipe.
    weighted = [layer.name for layer in ordered if layer.weight_type is not None]
    in_float = {"quantize": {"layers": {pattern_of(name): "float32" for name in weighted}}}
    remedies: list[Changes] = []
    if kind == "saturation":
        remedies = [{"quantize": {"weight_type": "auto"}}, {"quantize": {"reduce_range": True}}, in_float]
    elif kind == "clipping":
        remedies = [*([recalibrate] if recalibrate else []), {"quantize": {"calibrator": "minmax"}}, in_float]
    elif kind == "weight_spread":
        remedies = [{"quantize": {"per_channel": True}}, {"equalize": "cross_layer"}, in_float]
    elif kind in ("activation_spread", "input_spread"):
        remedies = [{"equalize": "cross_layer"}, in_float]
    elif kind == "outlier":
        remedies = [{"quantize": {"calibrator": "percentile"}}, in_float]
    elif kind == "bias":
        remedies = [{"bias_correction": "empirical"}, {"rounding": "adaround"}]
    elif kind == "mixed_ranges":
        remedies = [{"quantize": {"scheme": "int8x16"}}, {"quantize": {"max_drop": ACCEPTED_DROP}}]
    else:
        remedies = [in_float]
    if not weighted:
        remedies = [remedy for remedy in remedies if remedy is not in_float]
    return Cause(
        kind=kind,
        text=f"{TITLES[kind]}: {_evidence(kind, worst)}" + (f"; {len(names)} layers" if names[1:] else ""),
        layers=names,
        share=min(1.0, sum(layer.share for layer in ordered)),
        remedies=tuple(dict(remedy) for remedy in remedies),
    )


def _evidence(kind: Kind, layer: LayerStatistics) -> str:
    name = short(layer.name)
    if kind == "saturation":
        return (
            f"{name} computes other integers in its runtime than the same file in float arithmetic "
            f"({layer.runtime_snr_db:.1f} dB, {layer.runtime_noise:.3g} times the quantization error)"
        )
    if kind == "clipping":
        return (
            f"{layer.clipped:.2%} of the values of {name} are outside the calibrated range "
            f"{layer.low:.3g} … {layer.high:.3g}; they reach {layer.minimum:.3g} … {layer.maximum:.3g} "
            f"and cause {layer.clipped_noise:.0%} of its error"
        )
    if kind == "weight_spread":
        levels = 127 / (layer.weight_spread_quartile or 1)
        return (
            f"those of {name} spread {layer.weight_spread:.0f}× ({layer.weight_spread_median:.1f}× the "
            f"median) with one scale per tensor: a quarter of the channels has at most {levels:.0f} of 127 "
            f"steps, the smallest {layer.weight_levels}"
        )
    if kind == "input_spread":
        levels = 127 / (layer.weight_input_spread or 1)
        return (
            f"those of {name} spread {layer.weight_input_spread:.0f}× across input channels: with one scale, "
            f"a quarter of the channels has at most {levels:.0f} of 127 steps"
        )
    if kind == "activation_spread":
        return (
            f"the largest of {name} is {layer.activation_spread:.0f}× the lower quartile, with one scale for "
            f"all: a quarter of the channels has at most {255 / layer.activation_spread:.0f} of 255 steps"
        )
    if kind == "outlier":
        return (
            f"the largest value of {name} is {layer.outlier:.1f}× its 99.9th percentile: "
            f"most values share {255 / layer.outlier:.0f} of 255 steps"
        )
    if kind == "mixed_ranges":
        ranges = ", ".join(f"{short(source)} up to {largest:.3g}" for source, largest in layer.inputs)
        return f"{name} ({layer.operator}) joins ranges that differ {_mixed(layer):.0f}×: {ranges}"
    if kind == "bias":
        return (
            f"{layer.bias:.0%} of the error of {name} is a shift of its channel means, "
            f"{layer.mean_error:.2g} on average"
        )
    return f"{name} ({layer.operator}) causes {layer.share:.0%} of the final error"


def short(name: str) -> str:
    """A layer's name without those of the layers fused into it."""
    return name.split(";")[0]


def pattern_of(name: str) -> str:
    """A glob pattern that matches exactly this layer's name: special characters are escaped."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)
