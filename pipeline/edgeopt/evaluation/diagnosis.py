"""Diagnose a quantized model from its layer statistics: the causes of its error, and the remedies.

Pure: the same statistics give the same diagnosis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import Field

from edgeopt.evaluation.layer_causes import (
    ACCEPTED_DROP,
    DOMINANT,
    TITLES,
    Cause,
    Changes,
    Kind,
    causes_of_layers,
    short,
)
from edgeopt.evaluation.layer_statistics import Comparison, LayerStatistics
from edgeopt.results import GraphNode, Hop, Measurement
from edgeopt.results.measurement import Value

Part: TypeAlias = Literal["compress", "train", "quantize"]

CERTAIN_DB = 20.0
"""Outputs closer to the float model than this need no repair."""
AGREES = 0.98
COLLAPSED_DB = 10.0
UNEXPLAINED_DB = 10.0
"""The errors of single layers add up to that of the model, apart from correlations. If the total is larger
by this much, the layers do not explain it."""


class Twin(Value):
    """What the same quantization costs in another format, whose layers can be compared."""

    here: str = Field(description="the format that hides its layers")
    format: str
    quantized: Hop | None = Field(None, description="its quantizing step; None if it is unavailable")


class Before(Value):
    """One variant on the evaluation data of the recipe."""

    variant: str
    status: str
    reason: str = ""
    measurements: dict[str, Measurement] = Field({})


class Diagnosis(Value):
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
    evaluated: Before | None = Field(
        None, description="the artifact in the report of the run that was given, on its evaluation data"
    )
    applied: tuple[Before, ...] = Field(
        (), description="the variant before and after the changes, with --apply"
    )

    @property
    def needs_nothing(self) -> bool:
        """Whether there is no loss to repair: the outputs are close, and so are the decisions."""
        return is_fine(self.comparison) and all(cause.kind == "cost" for cause in self.causes)

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
    harmful, layer_causes = causes_of_layers(comparison.layers, recalibrate)
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
