"""The gates of a recipe: names looked up, limits as numbers, contradictions found."""

import math
from collections.abc import Sequence

from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.config.units import quantity
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.plugin import NamedMetric
from edgeopt.recipe.document import Document, GatePart
from edgeopt.recipe.recipe import Variant
from edgeopt.results import ALWAYS, LIMITS, MEASUREMENTS, Gate, Kind

NEVER_NEGATIVE: frozenset[Kind] = frozenset({"fraction", "bytes", "memory", "time", "ratio", "count"})
"""Kinds of measurements below which no limit makes sense."""


def resolved_gate(
    gate: GatePart,
    loc: Loc,
    document: Document,
    variants: Sequence[Variant],
    metrics: Sequence[NamedMetric],
    problems: Problems,
    *,
    complete: bool = True,
) -> Gate:
    """A gate with its limits as numbers; reports what it names that the recipe does not have.

    ``complete``: whether ``metrics`` are all that the recipe names. If one could not be found, gates on
    unknown metrics are not reported as well.
    """
    names = [metric.name for metric in metrics]
    of_set = [name for name, metric, _ in metrics if metric.of_set]
    worst = [f"{name}_worst_class_drop" for name in names if name not in (*ALWAYS, *of_set)]
    known = [*names, *worst, *MEASUREMENTS]
    if gate.metric not in known and complete:
        problems.add((*loc, "metric"), f"no metric {gate.metric!r}{nearest(gate.metric, known)}")
    if gate.metric in of_set and gate.classes:
        problems.add(
            (*loc, "classes"),
            f"{gate.metric} is a metric of the whole set, and the samples of one class have no value of "
            "their own: leave classes out, or use a metric with a value for every sample",
        )
    _check_members(gate, loc, document, variants, problems)
    against = {
        metric.name
        for metric in metrics
        if metric.metric.against == "source" and metric.metric.reads == "outputs"
    }
    if gate.output is not None and gate.metric in known and gate.metric not in against:
        problems.add(
            (*loc, "output"),
            f"{gate.metric} is not a metric of one output; these are: {', '.join(sorted(against))}",
        )
    labels = document.model.labels
    for name in gate.classes:
        if name not in labels and not (name.isdecimal() and (not labels or int(name) < len(labels))):
            hint = nearest(name, list(labels)) if labels else "; model.labels is empty"
            problems.add((*loc, "classes"), f"no class {name!r}{hint}")
    return Gate(**gate.model_dump(exclude=set(LIMITS)), **_limits(gate, loc, metrics, problems))


def _check_members(
    gate: GatePart, loc: Loc, document: Document, variants: Sequence[Variant], problems: Problems
) -> None:
    """Report variants, formats and devices that the recipe does not have."""
    for key, members in (
        ("variants", [variant.name for variant in variants]),
        ("formats", document.formats),
        ("devices", document.devices),
    ):
        for name in getattr(gate, key):
            if name not in members:
                problems.add(
                    (*loc, key),
                    f"no {key[:-1]} {name!r} in this recipe{nearest(name, list(members))}",
                )


def _limits(gate: GatePart, loc: Loc, metrics: Sequence[NamedMetric], problems: Problems) -> dict[str, float]:
    """The limits of a gate in SI units, by their kind; reports those that make no sense."""
    unit = MEASUREMENTS[gate.metric].unit if gate.metric in MEASUREMENTS else ""
    kinds = {name: shown.kind for name, shown in MEASUREMENTS.items()}
    kinds |= {name: metric.kind for name, metric, _ in metrics}
    limits: dict[str, float] = {}
    for kind in LIMITS:
        value = getattr(gate, kind)
        if value is not None:
            try:
                limits[kind] = quantity(value, "" if kind == "max_ratio" else unit)
                _check_limit(kind, limits[kind], kinds.get(gate.metric, "number"))
            except ValueError as error:
                problems.add((*loc, kind), str(error))
    return limits


def report_contradictions(gates: Sequence[Gate], loc: Loc, problems: Problems) -> None:
    """Report pairs of gates that no artifact can pass; ``loc`` is the place of their list."""
    for index, gate in enumerate(gates):
        for other in gates[:index]:
            same = (gate.metric, gate.filters, gate.classes, gate.output) == (
                other.metric,
                other.filters,
                other.classes,
                other.output,
            )
            low = max((g.min for g in (gate, other) if g.min is not None), default=None)
            high = min((g.max for g in (gate, other) if g.max is not None), default=None)
            if same and low is not None and high is not None and low > high:
                problems.add((*loc, index), f"contradicts the gate '{other}': no artifact can pass both")


def _check_limit(limit: str, value: float, kind: Kind) -> None:
    """Reject a limit that every artifact passes, or none.

    Raises:
        ValueError: it is outside the range of the values that it is compared with.
    """
    lowest = 0.0 if limit not in ("max", "min") or kind in NEVER_NEGATIVE else -math.inf
    if value < lowest or (limit == "max_ratio" and value == 0):
        raise ValueError(f"{value:g} is too small: no artifact can pass, or all of them do")
    if kind == "fraction" and limit != "max_ratio" and value > 1:
        raise ValueError(f"{value:g} is more than 100 %: write a fraction such as 0.9, or 90 %")
