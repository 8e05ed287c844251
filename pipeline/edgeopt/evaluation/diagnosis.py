"""Diagnose a quantized model from its layer statistics: the causes of its error, and the remedies.

Pure: the same statistics give the same diagnosis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.evaluation.layer_statistics import Comparison, LayerStatistics
from edgeopt.results import GraphNode, Hop, Measurement

Kind: TypeAlias = Literal[
    "export", "pruning", "saturation", "clipping", "weight_spread", "input_spread", "activation_spread",
    "outlier", "mixed_ranges", "kernels", "bias", "last_layer", "cost", "unknown",
]  # fmt: skip
Part: TypeAlias = Literal["compress", "train", "quantize"]
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
CERTAIN_DB = 20.0
"""Outputs closer to the float model than this need no repair."""
AGREES = 0.98
COLLAPSED_DB = 10.0
UNEXPLAINED_DB = 10.0
"""The errors of single layers add up to that of the model, apart from correlations. If the total is larger
by this much, the layers do not explain it."""
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


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cause(_Value):
    """One cause of the error, described with the supporting numbers."""

    kind: Kind
    text: str
    layers: tuple[str, ...] = ()
    share: float = Field(0.0, description="share of the final error, over all its layers")
    remedies: tuple[dict[str, Any], ...] = Field((), description="proposed changes, best first")


class Twin(_Value):
    """What the same quantization costs in another format, whose layers can be compared."""

    here: str = Field(description="the format that hides its layers")
    format: str
    quantized: Hop | None = Field(None, description="its quantizing step; None if it is unavailable")


class Before(_Value):
    """One variant on the evaluation data of the recipe."""

    variant: str
    status: str
    reason: str = ""
    measurements: dict[str, Measurement] = {}


class Diagnosis(_Value):
    """Causes of the error of one variant in one format, and proposed changes."""

    recipe: str
    variant: str
    format: str
    data: str = Field(description="origin of the samples")
    comparison: Comparison
    steps: tuple[Hop, ...] = Field(
        (), description="every step from the source model, compared with the previous one"
    )
    causes: tuple[Cause, ...]
    patch: dict[str, Any] = Field({}, description="changes to merge into the recipe; empty: none")
    notes: tuple[str, ...] = ()
    graph: tuple[GraphNode, ...] = Field(
        (), description="operators of the quantized file, if its format says how they are connected"
    )
    applied: tuple[Before, ...] = Field(
        (), description="the variant before and after the changes, with --apply"
    )

    @property
    def patch_text(self) -> str:
        """The patch as YAML lines for a recipe."""
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
    parts: Mapping[str, Part] | None = None,
    twin: Twin | None = None,
) -> list[Cause]:
    """The causes of the difference between a quantized model and its source, by share of the error.

    Args:
        comparison: statistics of the float and the quantized file, in which earlier pruning is in both.
        steps: the steps from the source model, each compared with the previous one.
        recalibrate: the change that calibrates on other data, if there are any.
        precision: precision of the quantized model, in the plural.
        parts: what stages do to the model on purpose, by their names in ``steps``.
        twin: the same model in a format that shows its layers, if this one hides them.
    """
    export_causes = [_export(hop) for hop in steps if hop.lossless and _is_broken(hop)]
    pruning_causes = _pruning(comparison, steps, precision, parts or {})
    by_kind: dict[Kind, list[LayerStatistics]] = {}
    harmful = [
        layer
        for layer in comparison.layers
        if layer.share >= SIGNIFICANT and layer.alone_snr_db < HARMLESS_DB
    ]
    last = {layer.name for layer in _last_layers(comparison.layers)}
    for layer in harmful:
        for kind in _kinds(layer, layer.name in last):
            by_kind.setdefault(kind, []).append(layer)
    layer_causes = [_cause(kind, layers, recalibrate) for kind, layers in by_kind.items()]
    layer_causes.sort(key=lambda cause: -cause.share)
    if pruning_causes:
        # The shares of the layers are those of what quantization adds, if it is worth a cure at all.
        rest = 1.0 - pruning_causes[0].share
        worth = [] if is_fine(comparison) else layer_causes
        layer_causes = [each.model_copy(update={"share": each.share * rest}) for each in worth]
    if export_causes or pruning_causes or layer_causes:
        return [*export_causes, *pruning_causes, *layer_causes]
    if twin is not None:
        return [_of_twin(comparison, twin, precision)]
    return [_cost(comparison, harmful, precision)]


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


def _is_broken(hop: Hop) -> bool:
    return hop.status == "broken"


def _export(hop: Hop) -> Cause:
    difference = "" if hop.snr_db is None else f": SNR {hop.snr_db:.1f} dB against the previous step"
    return Cause(
        kind="export",
        text=f"{TITLES['export']}: {hop.stage} should preserve the outputs but changed them{difference}",
        share=1.0,
    )


def is_fine(comparison: Comparison) -> bool:
    """Whether quantization changed so little that it needs no cure."""
    agreement = 1.0 if comparison.agreement is None else comparison.agreement
    return comparison.snr_db >= CERTAIN_DB and agreement >= AGREES


def _pruning(
    comparison: Comparison, steps: Sequence[Hop], precision: str, parts: Mapping[str, Part]
) -> list[Cause]:
    """At most one cause: pruning or clustering that changed more than quantization did.

    Both are measured by the decisions that they change, since training moves the outputs of a model that
    decides as before; by noise power for models without decisions. A step that also quantizes, because the
    host runs nothing in between, is judged without what quantization changed.
    """
    for hop in steps:
        roles = {parts.get(name) for name in hop.stage.split(" + ")}
        if "compress" not in roles or hop.snr_db is None:
            continue
        by_decisions = hop.agreement is not None and comparison.agreement is not None
        if hop.agreement is not None and comparison.agreement is not None:
            pruned, quantized = 1 - hop.agreement, 1 - comparison.agreement
        else:
            pruned, quantized = (10 ** (-snr / 10) for snr in (hop.snr_db, comparison.snr_db))
        if "quantize" in roles:
            pruned = max(pruned - quantized, 0.0)
        tolerated = 1 - AGREES if by_decisions else 10 ** (-CERTAIN_DB / 10)
        share = pruned / (pruned + quantized) if pruned > tolerated else 0.0
        if share < DOMINANT:
            continue
        if by_decisions:
            before, after = (f"changed {value:.1%} of the decisions of" for value in (pruned, quantized))
        else:
            before, after = (
                f"left {-10 * math.log10(max(value, 1e-20)):.1f} dB of" for value in (pruned, quantized)
            )
        trained = "train" in roles
        return [
            Cause(
                kind="pruning",
                text=f"{TITLES['pruning']}: {hop.stage} {before} the source model, {precision} {after} the "
                f"result; prune less, or {'train longer' if trained else 'finetune'}",
                share=share,
                remedies=() if trained else ({"finetune": {}},),
            )
        ]
    return []


def _of_twin(comparison: Comparison, twin: Twin, precision: str) -> Cause:
    """Whether the ranges or the kernels are the cause, in a format that hides its layers.

    Another format is recommended for diagnosis only if it is as bad, since its own kernels run there.
    """
    here = f"outputs at {comparison.snr_db:.1f} dB"
    snr = twin.quantized.snr_db if twin.quantized is not None else None
    if snr is not None and comparison.snr_db < CERTAIN_DB and snr - comparison.snr_db >= UNEXPLAINED_DB:
        there = f"quantized from the same program, {twin.format} has {snr:.1f} dB"
        return Cause(kind="kernels", text=f"{TITLES['kernels']}: {here}; {there}", share=1.0)
    if snr is None and not is_fine(comparison):
        return Cause(kind="unknown", text=f"{TITLES['unknown']}: {here}; {twin.here} hides its layers")
    text = f"this is the cost of {precision}: {here}; {twin.here} hides its layers"
    if snr is None or is_fine(comparison):
        return Cause(kind="cost", text=text)
    text += f"; {twin.format}, quantized from the same program, has {snr:.1f} dB: diagnose it with --format"
    return Cause(kind="cost", text=f"{text} {twin.format}")


def _cost(comparison: Comparison, harmful: Sequence[LayerStatistics], precision: str) -> Cause:
    top_layer = max(comparison.layers, key=lambda layer: layer.share, default=None)
    finding = "no layer stands out"
    if top_layer is not None and harmful:
        finding = (
            f"no single layer is at fault; {short(top_layer.name)} has the largest share of the error, "
            f"{top_layer.share:.0%}"
        )
    combined = sum(10 ** (-layer.alone_snr_db / 10) for layer in comparison.layers)
    explained = comparison.snr_db >= -10 * math.log10(max(combined, 1e-20)) - UNEXPLAINED_DB
    kind: Kind = "cost" if explained or comparison.snr_db >= COLLAPSED_DB else "unknown"
    words = TITLES.get(kind, f"this is the cost of {precision}")
    return Cause(
        kind=kind,
        text=f"{words}: outputs at {comparison.snr_db:.1f} dB; {finding}",
        layers=tuple(layer.name for layer in harmful),
        remedies=() if is_fine(comparison) else ({"quantize": {"max_drop": ACCEPTED_DROP}},),
    )


def short(name: str) -> str:
    """A layer's name without those of the layers fused into it."""
    return name.split(";")[0]


def pattern_of(name: str) -> str:
    """A glob pattern that matches exactly this layer's name: special characters are escaped."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)


def propose(by_share: Sequence[Cause], possible: Callable[[Changes], bool]) -> Changes:
    """For each cause, the first remedy that is possible together with those already chosen."""
    chosen: Changes = {}
    for cause in by_share:
        for remedy in cause.remedies:
            combined = merged(chosen, remedy)
            if possible(combined):
                chosen = combined
                break
    return chosen


def merged(one: Changes, other: Changes) -> Changes:
    """Merge both recursively; on conflict, the first takes precedence."""
    result = dict(other)
    for key, value in one.items():
        theirs = result.get(key)
        result[key] = merged(value, theirs) if isinstance(value, dict) and isinstance(theirs, dict) else value
    return result
