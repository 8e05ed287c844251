"""One artifact on one device as the page shows it, and the search behind it."""

import math
from collections.abc import Sequence
from typing import Any

from edgeopt.reports.markdown import show
from edgeopt.reports.pagefindings import Data, classes, confusions, cut, finite, lost, sensitivity
from edgeopt.results import Measurement, Report, Result, Trial

SENTENCE = 2000
"""Characters shown of a sentence; report.json has all of it. So for the following."""
LAYERS = 60
TRIALS = 60
RAISED = 12

SPREAD = ("latency_min_ms", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_max_ms")


def row_of(result: Result, metric: str, shown: Sequence[str], judged: str, diagnose: str) -> Data:
    """``diagnose``: the command that tells which layers of it lose accuracy."""
    found = result.measurements
    latency = "latency_p50_ms" if "latency_p50_ms" in found else "estimated_latency_ms"
    return {
        "variant": cut(result.variant),
        "format": cut(result.format),
        "device": cut(result.device),
        "status": result.status,
        "gate": judged,
        "reason": cut(result.reason, SENTENCE),
        "cells": [_cell(found.get(name)) for name in shown],
        "accuracy": _point(found.get(metric or "agreement")),
        "size": _point(found.get("size_bytes")),
        "latency": _point(found.get(latency)),
        "estimated": latency not in found or latency == "estimated_latency_ms",
        "spread": _spread(found),
        "hops": [
            {
                "stage": cut(hop.stage),
                "produced": cut(hop.produced),
                "status": hop.status,
                "lossless": hop.lossless,
                "snr": "" if hop.snr_db is None else f"{hop.snr_db:.1f} dB",
                "error": "" if hop.max_abs_error is None else f"{hop.max_abs_error:.2g}",
                "agreement": "" if hop.agreement is None else f"{hop.agreement:.1%}",
                "reason": cut(hop.reason, SENTENCE),
            }
            for hop in result.hops
        ],
        "measurements": [measured(name, value) for name, value in found.items()],
        "layers": _layers(result),
        "flips": lost(result),
        "classes": classes(result),
        "confusions": confusions(result),
        "diagnose": cut(diagnose, SENTENCE) if any(not hop.lossless for hop in result.hops) else "",
        "notes": [cut(note, SENTENCE) for note in result.notes],
        "facts": _facts(result),
    }


def _point(measurement: Measurement | None) -> Data | None:
    if measurement is None or not math.isfinite(measurement.value):
        return None
    whole = _interval(measurement, plain=True)
    return {"value": measurement.value, "text": show(measurement), "whole": whole}


def _spread(found: dict[str, Measurement]) -> list[Data | None] | None:
    """Latencies from the quickest run to the slowest, where single runs were timed."""
    quickest, *middle, slowest = (_point(found.get(name)) for name in SPREAD)
    if not all(middle):
        return None
    return [quickest or middle[0], *middle, slowest or middle[-1]]


def _cell(measurement: Measurement | None) -> list[Any] | None:
    return None if measurement is None else [show(measurement), finite(measurement.value)]


def measured(name: str, measurement: Measurement) -> list[str]:
    counted = "" if measurement.n is None else f"{measurement.n:,}"
    return [cut(name), show(measurement), _interval(measurement), counted]


def _interval(measurement: Measurement, *, plain: bool = False) -> str:
    """Its 95 % interval; ``plain``: the value itself before it."""
    told = show(measurement) if plain else ""
    if measurement.ci95 is None:
        return told
    low, high = (show(measurement.model_copy(update={"value": end})) for end in measurement.ci95)
    return f"{told} ({low} to {high})" if plain else f"{low} to {high}"


def _facts(result: Result) -> list[list[str]]:
    artifact = result.artifact
    facts = [
        ("runtime", result.runtime),
        ("file", artifact.path if artifact else ""),
        ("size", f"{artifact.size_bytes:,} B" if artifact else ""),
        ("sha256", artifact.digest if artifact else ""),
        ("made by", " → ".join(result.chain)),
        ("transposes", "" if result.transposes is None else str(result.transposes)),
        ("measured", "by an earlier run on this machine" if result.cached else ""),
    ]
    return [[title, cut(value, SENTENCE)] for title, value in facts if value]


def _layers(result: Result) -> Data | None:
    """Rows of the operators, the costliest first where a cost is known, with numbers left as numbers."""
    if not result.layers:
        return None
    known = list(dict.fromkeys(key for layer in result.layers for key in layer))
    cost = next((key for key in ("ms", "cycles", "npu_cycles") if key in known), None)
    ordered = sorted(result.layers, key=lambda layer: -_cost(layer.get(cost))) if cost else result.layers
    rows = [[_value(layer.get(key)) for key in known] for layer in ordered[:LAYERS]]
    return {"titles": [cut(key) for key in known], "rows": rows, "count": len(result.layers)}


def _cost(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _value(value: str | float | int | None) -> str | float | int | None:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return cut(value) if isinstance(value, str) else value


def searches(report: Report) -> dict[tuple[str, str], tuple[Trial, ...]]:
    """Trials of each artifact, once: it is the same file on every device. The smallest file first."""
    found = {(row.variant, row.format): row.trials for row in report.results if row.trials}
    return {key: tuple(sorted(trials, key=lambda trial: trial.size_bytes)) for key, trials in found.items()}


def search_of(variant: str, form: str, trials: Sequence[Trial]) -> Data:
    """What a search tried for one artifact, and how sensitive each layer of it turned out to be."""
    return {
        "variant": cut(variant),
        "format": cut(form),
        "trials": [trial_of(trial) for trial in trials if trial.status != "alone"][:TRIALS],
        "layers": sensitivity(trials),
    }


def trial_of(trial: Trial) -> Data:
    more = len(trial.raised) - RAISED
    raised = ", ".join(trial.raised[:RAISED]) + (f" and {more} more" if more > 0 else "")
    return {
        "name": cut(trial.name),
        "size": trial.size_bytes,
        "drop": finite(trial.drop),
        "status": trial.status,
        "cells": [
            f"{trial.size_bytes:,} B",
            f"{trial.drop:.2%}",
            "" if trial.agreement is None else f"{trial.agreement:.1%}",
            "" if trial.snr_db is None else f"{trial.snr_db:.1f} dB",
            f"{trial.samples:,}" if trial.samples else "",
            {"chosen": "chosen", "kept": "on the front"}.get(trial.status, ""),
            cut(raised, SENTENCE),
        ],
    }
