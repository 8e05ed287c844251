"""Page data of one artifact on one device, and of its search."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgeopt.reports.cards import address
from edgeopt.reports.columns import show
from edgeopt.reports.pagedata.findings import Data, classes, confusions, cut, finite, lost, sensitivity
from edgeopt.results import Hop, Measurement, Measurements, OutputChange, Report, Result, Trial

SENTENCE = 2000
"""Maximum length of a sentence in the page; report.json is complete. The following limit other parts."""
LAYERS = 60
TRIALS = 60
RAISED = 12

SPREAD = ("latency_min_ms", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_max_ms")

LATENCIES = ("latency_p50_ms", "estimated_latency_ms", "estimated_latency_max_ms")
"""What the charts show as latency, the first that there is; all but the first are estimates."""
MEMORIES = ("arena_bytes", "sram_bytes")
FLASHES = ("flash_bytes", "estimated_flash_max_bytes")
"""What the charts show as RAM and flash of a microcontroller, the first that there is."""


class Scale(NamedTuple):
    """What the charts show as accuracy."""

    metric: str
    """Name of the primary metric; empty for agreement."""
    source: float | None
    """Its value for the original model."""
    sign: float
    """1 if higher is better, otherwise -1."""


def row_of(result: Result, scale: Scale, shown: Sequence[str], judged: str, diagnose: str, base: str) -> Data:
    """Page data of one result.

    Args:
        result: the result.
        scale: what the charts show as accuracy.
        shown: measurements of the table's columns.
        judged: worst gate verdict of the result.
        diagnose: command that diagnoses the artifact layer by layer.
        base: path from the page to the run's folder, such as ``../``.
    """
    measurements = result.measurements
    return {
        "variant": cut(result.variant),
        "format": cut(result.format),
        "device": cut(result.device),
        "status": result.status,
        "gate": judged,
        "reason": cut(result.reason, SENTENCE),
        "cells": [_cell(measurements.get(name)) for name in shown],
        **charted(measurements, scale),
        "spread": _spread(measurements),
        "hops": [
            {
                "stage": cut(hop.stage),
                "produced": cut(hop.produced),
                "lossless": hop.lossless,
                "reason": cut(hop.reason, SENTENCE),
                "outputs": [
                    {"name": cut(each.name)} | _change(each)
                    for each in (hop.outputs if len(hop.outputs) > 1 else ())
                ],
            }
            | _change(hop)
            for hop in result.hops
        ],
        "measurements": [measured(name, value) for name, value in measurements.items()],
        "layers": _layers(result),
        "flips": lost(result),
        "classes": classes(result),
        "confusions": confusions(result),
        "diagnose": cut(diagnose, SENTENCE) if any(not hop.lossless for hop in result.hops) else "",
        "notes": [cut(note, SENTENCE) for note in result.notes],
        "facts": _facts(result, base),
    }


def charted(measurements: Measurements, scale: Scale) -> Data:
    """What the charts show of a result."""
    latency, memory, flash = (
        next((name for name in names if name in measurements), "") for names in (LATENCIES, MEMORIES, FLASHES)
    )
    return {
        "accuracy": _accuracy(measurements, scale),
        "size": _point(measurements.get("size_bytes")),
        "latency": _point(measurements.get(latency)),
        "memory": _point(measurements.get(memory)),
        "flash": _point(measurements.get(flash)),
        "estimated": latency != LATENCIES[0],
    }


def _change(change: Hop | OutputChange) -> Data:
    return {
        "status": change.status,
        "snr": "" if change.snr_db is None else f"{change.snr_db:.1f} dB",
        "error": "" if change.max_abs_error is None else f"{change.max_abs_error:.2g}",
        "agreement": "" if change.agreement is None else f"{change.agreement:.2%}",
    }


def _point(measurement: Measurement | None) -> Data | None:
    if measurement is None or not math.isfinite(measurement.value):
        return None
    whole = _interval(measurement, plain=True)
    return {
        "value": measurement.value,
        "text": show(measurement),
        "whole": whole,
        "ends": _finite_ends(measurement.ci95),
    }


def _accuracy(measurements: dict[str, Measurement], scale: Scale) -> Data | None:
    """The accuracy, with the interval of its paired difference from the original model, if that is known.

    The charts compare artifacts with the original model on the same samples: the interval of a value by
    itself is wider than the differences that can be seen.
    """
    point = _point(measurements.get(scale.metric or "agreement"))
    drop = measurements.get(f"{scale.metric}_drop")
    if point is not None and scale.source is not None and drop is not None and drop.ci95 is not None:
        low, high = drop.ci95
        point["ends"] = _finite_ends((scale.source - scale.sign * low, scale.source - scale.sign * high))
    return point


def _finite_ends(ends: tuple[float, float] | None) -> list[float] | None:
    return sorted(ends) if ends is not None and all(map(math.isfinite, ends)) else None


def _spread(measurements: dict[str, Measurement]) -> list[Data | None] | None:
    """Latency from minimum to maximum, if individual inferences were timed."""
    fastest, *middle, slowest = (_point(measurements.get(name)) for name in SPREAD)
    if not all(middle):
        return None
    return [fastest or middle[0], *middle, slowest or middle[-1]]


def _cell(measurement: Measurement | None) -> list[Any] | None:
    return None if measurement is None else [show(measurement), finite(measurement.value)]


def measured(name: str, measurement: Measurement) -> list[str]:
    count = "" if measurement.n is None else f"{measurement.n:,}"
    return [cut(name), show(measurement), _interval(measurement), count]


def _interval(measurement: Measurement, *, plain: bool = False) -> str:
    """The 95 % interval; with ``plain``, preceded by the value."""
    value = show(measurement) if plain else ""
    if measurement.ci95 is None:
        return value
    low, high = (show(measurement.model_copy(update={"value": end})) for end in measurement.ci95)
    return f"{value} ({low} to {high})" if plain else f"{low} to {high}"


def _facts(result: Result, base: str) -> list[list[str]]:
    """Titles, texts, and where a text is a file of the run, the link to it."""
    artifact = result.artifact
    facts = [
        ("runtime", result.runtime),
        ("size", f"{artifact.size_bytes:,} B" if artifact else ""),
        ("sha256", artifact.digest if artifact else ""),
        ("stages", " → ".join(result.chain)),
        ("transposes", "" if result.transposes is None else str(result.transposes)),
        ("measured", "in an earlier run on this machine" if result.cached else ""),
    ]
    shown = [[title, cut(value, SENTENCE)] for title, value in facts if value]
    return [["file", cut(artifact.path), address(artifact.path, base)], *shown] if artifact else shown


def _layers(result: Result) -> Data | None:
    """Rows of the operators, most expensive first if a cost is keys; numbers are not formatted."""
    if not result.layers:
        return None
    keys = list(dict.fromkeys(key for layer in result.layers for key in layer))
    cost = next((key for key in ("ms", "cycles", "npu_cycles") if key in keys), None)
    ordered = sorted(result.layers, key=lambda layer: -_cost(layer.get(cost))) if cost else result.layers
    rows = [[_value(layer.get(key)) for key in keys] for layer in ordered[:LAYERS]]
    return {"titles": [cut(key) for key in keys], "rows": rows, "count": len(result.layers)}


def _cost(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _value(value: str | float | int | None) -> str | float | int | None:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return cut(value) if isinstance(value, str) else value


def searches(report: Report) -> dict[tuple[str, str], tuple[Trial, ...]]:
    """Trials of each artifact, once for all devices, smallest file first."""
    by_artifact = {(row.variant, row.format): row.trials for row in report.results if row.trials}
    ordered = {
        key: tuple(sorted(trials, key=lambda trial: trial.size_bytes)) for key, trials in by_artifact.items()
    }
    return ordered


def search_of(variant: str, form: str, trials: Sequence[Trial]) -> Data:
    """Candidates of the search for one artifact, and the sensitivity of its layers."""
    return {
        "variant": cut(variant),
        "format": cut(form),
        "trials": [trial_of(trial) for trial in trials if trial.status != "alone"][:TRIALS],
        "layers": sensitivity(trials),
    }


def trial_of(trial: Trial) -> Data:
    hidden = len(trial.raised) - RAISED
    raised = ", ".join(trial.raised[:RAISED]) + (f" and {hidden} more" if hidden > 0 else "")
    return {
        "name": cut(trial.name),
        "size": trial.size_bytes,
        "drop": finite(trial.drop),
        "status": trial.status,
        "cells": [
            f"{trial.size_bytes:,} B",
            f"{trial.drop:.2%}",
            "" if trial.agreement is None else f"{trial.agreement:.2%}",
            "" if trial.snr_db is None else f"{trial.snr_db:.1f} dB",
            f"{trial.samples:,}" if trial.samples else "",
            {"chosen": "chosen", "kept": "Pareto-optimal"}.get(trial.status, ""),
            cut(raised, SENTENCE),
        ],
    }
