"""From the statistics of layers to what is wrong with a quantized model, in words, and what to change.

Pure: the same statistics give the same diagnosis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.evaluation.layer_statistics import Comparison, LayerStatistics
from edgeopt.results import Hop, Measurement

Kind: TypeAlias = Literal[
    "export", "saturation", "clipping", "weight_spread", "input_spread", "activation_spread", "outlier",
    "mixed_ranges", "bias", "last_layer", "cost", "unknown",
]  # fmt: skip
Changes: TypeAlias = Mapping[str, Any]
"""What to merge into a variant, and under ``data`` into the recipe's data."""

SIGNIFICANT = 0.05
"""Share of the final error from which on a layer is a culprit."""
HARMLESS_DB = 40.0
"""A layer that leaves the outputs so near to the float model's does no harm, whatever its statistics."""
POOR_DB = 35.0
"""Eight bits that are made use of give a layer more."""
CLIPPED_DB = 25.0
"""A range that is narrow on purpose, to have smaller steps, costs a layer less than this."""
SPREAD = 16.0
"""Of the largest channel to the lower quartile: under one scale, a quarter of them has 8 of 127 steps or
less. The smallest channel would not do: many networks have some that are as good as dead."""
OUTLIER = 4.0
"""Two of eight bits are spent on one value in a thousand."""
MIXED = 8.0
DOMINANT = 0.5
CERTAIN_DB = 20.0
"""Outputs that are nearer to the float model's need no repair."""
AGREES = 0.98
COLLAPSED_DB = 10.0
UNEXPLAINED_DB = 10.0
"""Errors of single layers add up to that of the model, within what they have to do with each other. Where it
is so much larger, something else is wrong."""
ACCEPTED_DROP = 0.005
JOINING = frozenset({"concat", "cat", "concatenation", "add", "sub"})
WORDS: dict[str, str] = {
    "export": "bad export, not quantization",
    "saturation": "saturating 8-bit accumulation on this CPU",
    "clipping": "clipped calibration",
    "weight_spread": "channel ranges of the weights",
    "input_spread": "channel ranges of what the weights multiply",
    "activation_spread": "channel ranges of the activations",
    "outlier": "outlier activation",
    "mixed_ranges": "mixed ranges in one operator",
    "bias": "shifted mean",
    "last_layer": "last layer",
    "unknown": "none of the known causes",
}


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cause(_Value):
    """One reason, in words, with the numbers that prove it."""

    kind: Kind
    text: str
    layers: tuple[str, ...] = ()
    share: float = Field(0.0, description="of the final error, by the layers it is true of")
    remedies: tuple[dict[str, Any], ...] = Field((), description="what to change, the best first")


class Before(_Value):
    """One variant on the evaluation data of the recipe."""

    variant: str
    status: str
    reason: str = ""
    measurements: dict[str, Measurement] = {}


class Diagnosis(_Value):
    """What is wrong with one variant in one format, and what to change."""

    recipe: str
    variant: str
    format: str
    data: str = Field(description="where the samples are from")
    comparison: Comparison
    steps: tuple[Hop, ...] = Field((), description="every step on the way, held against the one before")
    causes: tuple[Cause, ...]
    patch: dict[str, Any] = Field({}, description="what to merge into the recipe; empty: nothing to change")
    notes: tuple[str, ...] = ()
    applied: tuple[Before, ...] = Field((), description="the variant before and after, with --apply")

    @property
    def patch_text(self) -> str:
        """The patch as lines to paste into a recipe."""
        lines = []
        for part, value in self.patch.items():
            lines.append(f"{part}:")
            for name, body in value.items():
                text = yaml.safe_dump(body, default_flow_style=True, sort_keys=False, width=1000)
                lines.append(f"  {name}: {text.strip()}")
        return "\n".join(lines)


def causes(
    comparison: Comparison,
    steps: Sequence[Hop] = (),
    recalibrate: Changes | None = None,
    precision: str = "8 bits",
) -> list[Cause]:
    """The reasons why a quantized model differs from its float model, the heaviest first.

    Args:
        comparison: float and quantized file.
        steps: the steps before quantization, each held against the one before.
        recalibrate: the change that calibrates on other data, where there are some.
        precision: what the model was quantized to, in the plural.
    """
    exported = [_export(hop) for hop in steps if hop.lossless and _changed(hop)]
    found: dict[Kind, list[LayerStatistics]] = {}
    harmful = [
        layer
        for layer in comparison.layers
        if layer.share >= SIGNIFICANT and layer.alone_snr_db < HARMLESS_DB
    ]
    last = {layer.name for layer in _ends(comparison.layers)}
    for layer in harmful:
        for kind in _kinds(layer, layer.name in last):
            found.setdefault(kind, []).append(layer)
    named = [_cause(kind, layers, recalibrate) for kind, layers in found.items()]
    named.sort(key=lambda cause: -cause.share)
    if exported or named:
        return [*exported, *named]
    return [_cost(comparison, harmful, precision)]


def _kinds(layer: LayerStatistics, is_last: bool) -> list[Kind]:
    """What is wrong with one layer."""
    if layer.runtime_snr_db is not None and layer.runtime_noise > 1 and layer.runtime_snr_db < HARMLESS_DB:
        return ["saturation"]
    if layer.clipped_noise >= DOMINANT and layer.own_snr_db < CLIPPED_DB:
        return ["clipping"]
    found: list[Kind] = []
    if layer.weights_per_channel is False and (layer.weight_spread_quartile or 0) >= SPREAD:
        found.append("weight_spread")
    if (layer.weight_input_spread or 0) >= SPREAD:
        found.append("input_spread")
    if layer.activation_spread >= SPREAD and layer.operator != "input":  # nothing before it could be scaled
        found.append("activation_spread")
    if _mixed(layer) >= MIXED:
        found.append("mixed_ranges")
    if not found and layer.outlier >= OUTLIER and layer.own_snr_db < POOR_DB:
        found.append("outlier")
    if not found and layer.bias >= DOMINANT and layer.own_snr_db < POOR_DB:
        found.append("bias")
    if not found and is_last and layer.share >= DOMINANT:
        found.append("last_layer")
    return found


def _mixed(layer: LayerStatistics) -> float:
    """How far the ranges of what an operator joins are apart; 1 for any other."""
    ranges = [largest for _, largest in layer.inputs if largest > 0]
    if layer.operator.lower() not in JOINING or len(ranges) < 2:
        return 1.0
    return max(ranges) / min(ranges)


def _ends(layers: Sequence[LayerStatistics]) -> Sequence[LayerStatistics]:
    """The last layer with weights, and all behind it; where none tells of weights, the last one."""
    weighted = [index for index, layer in enumerate(layers) if layer.weight_type is not None]
    return layers[weighted[-1] if weighted else len(layers) - 1 :]


def _cause(kind: Kind, layers: Sequence[LayerStatistics], recalibrate: Changes | None) -> Cause:
    """One reason for several layers; the text tells of the heaviest."""
    ordered = sorted(layers, key=lambda layer: -layer.share)
    worst = ordered[0]
    names = tuple(layer.name for layer in ordered)
    # Only layers with weights can be given a precision of their own.
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
        text=f"{WORDS[kind]}: {_evidence(kind, worst)}" + (f"; {len(names)} layers" if names[1:] else ""),
        layers=names,
        share=min(1.0, sum(layer.share for layer in ordered)),
        remedies=tuple(dict(remedy) for remedy in remedies),
    )


def _evidence(kind: Kind, layer: LayerStatistics) -> str:
    name = short(layer.name)
    if kind == "saturation":
        return (
            f"{name} gives other integers in its runtime than the same file computed in float "
            f"({layer.runtime_snr_db:.1f} dB apart, {layer.runtime_noise:.3g} times the error of quantizing)"
        )
    if kind == "clipping":
        return (
            f"{layer.clipped:.2%} of the values of {name} lie beyond the calibrated range "
            f"{layer.low:.3g} … {layer.high:.3g}; they reach {layer.minimum:.3g} … {layer.maximum:.3g}, "
            f"and make {layer.clipped_noise:.0%} of its error"
        )
    if kind == "weight_spread":
        few = 127 / (layer.weight_spread_quartile or 1)
        return (
            f"those of {name} spread {layer.weight_spread:.0f}× ({layer.weight_spread_median:.1f}× the "
            f"median) under one scale per tensor: a quarter of them has {few:.0f} of 127 steps or less, "
            f"the smallest {layer.weight_levels}"
        )
    if kind == "input_spread":
        few = 127 / (layer.weight_input_spread or 1)
        return (
            f"the weights of {name} spread {layer.weight_input_spread:.0f}× from input channel to input "
            f"channel: one scale leaves {few:.0f} of 127 steps or less to a quarter of them"
        )
    if kind == "activation_spread":
        return (
            f"the largest of {name} is {layer.activation_spread:.0f}× the lower quartile, and all share one "
            f"scale: a quarter of them has {255 / layer.activation_spread:.0f} of 255 steps or less"
        )
    if kind == "outlier":
        return (
            f"the largest value of {name} is {layer.outlier:.1f}× its 99.9th percentile: "
            f"most values share {255 / layer.outlier:.0f} of 255 steps"
        )
    if kind == "mixed_ranges":
        told = ", ".join(f"{short(source)} up to {largest:.3g}" for source, largest in layer.inputs)
        return f"{name} ({layer.operator}) joins ranges {_mixed(layer):.0f}× apart: {told}"
    if kind == "bias":
        return (
            f"{layer.bias:.0%} of the error of {name} is a shift of its channels, "
            f"{layer.mean_error:.2g} on average"
        )
    return f"{name} ({layer.operator}) makes {layer.share:.0%} of the final error"


def _changed(hop: Hop) -> bool:
    return hop.status == "broken"


def _export(hop: Hop) -> Cause:
    told = "" if hop.snr_db is None else f": its outputs are {hop.snr_db:.1f} dB from those before it"
    return Cause(
        kind="export",
        text=f"{WORDS['export']}: {hop.stage} should keep the outputs and changed them{told}",
        share=1.0,
    )


def _cost(comparison: Comparison, harmful: Sequence[LayerStatistics], precision: str) -> Cause:
    fine = comparison.snr_db >= CERTAIN_DB and (comparison.agreement or 1.0) >= AGREES
    heaviest = max(comparison.layers, key=lambda layer: layer.share, default=None)
    told = "no layer stands out"
    if heaviest is not None and harmful:
        told = (
            f"no layer has a fault of its own; the heaviest, {short(heaviest.name)}, adds "
            f"{heaviest.share:.0%} of the error"
        )
    together = sum(10 ** (-layer.alone_snr_db / 10) for layer in comparison.layers)
    explained = comparison.snr_db >= -10 * math.log10(max(together, 1e-20)) - UNEXPLAINED_DB
    kind: Kind = "cost" if explained or comparison.snr_db >= COLLAPSED_DB else "unknown"
    words = WORDS.get(kind, f"this is what {precision} cost")
    return Cause(
        kind=kind,
        text=f"{words}: outputs at {comparison.snr_db:.1f} dB; {told}",
        layers=tuple(layer.name for layer in harmful),
        remedies=() if fine else ({"quantize": {"max_drop": ACCEPTED_DROP}},),
    )


def short(name: str) -> str:
    """A layer's name without the names that were fused into it."""
    return name.split(";")[0]


def pattern_of(name: str) -> str:
    """A pattern for a layer's name; the characters that a pattern gives a meaning to stand for themselves."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)


def propose(found: Sequence[Cause], possible: Callable[[Changes], bool]) -> Changes:
    """The first remedy of every cause that can be had together with those before it."""
    chosen: Changes = {}
    for cause in found:
        for remedy in cause.remedies:
            together = merged(chosen, remedy)
            if possible(together):
                chosen = together
                break
    return chosen


def merged(one: Changes, other: Changes) -> Changes:
    """Both; where they disagree, the first."""
    result = dict(other)
    for key, value in one.items():
        theirs = result.get(key)
        result[key] = merged(value, theirs) if isinstance(value, dict) and isinstance(theirs, dict) else value
    return result
