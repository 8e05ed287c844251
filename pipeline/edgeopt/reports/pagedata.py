"""What the page shows of a report: text as people read it, numbers to sort and draw by."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from edgeopt.reports.markdown import columns, primary_metric, show
from edgeopt.reports.plain import printable
from edgeopt.results import UNITS, Measurement, Report, Result, Trial, Verdict

NAME = 200
"""Characters shown of a name; report.json has all of it. So for the following."""
SENTENCE = 2000
LAYERS = 60
FLIPS = 40
TRIALS = 60
CONFUSIONS = 8
RAISED = 12

Data = dict[str, Any]


def collect(report: Report) -> Data:
    """Everything the page's script needs, made of text, numbers, lists and mappings alone."""
    metric = primary_metric(report)
    shown = columns(report.results, metric)
    judged = _judged(report.gates)
    source = report.source
    baseline = source.measurements.get(metric) if source is not None else None
    return {
        "recipe": cut(report.recipe),
        "verdict": _verdict(report),
        "metric": {
            "name": cut(metric or "agreement"),
            "higher": higher_is_better(report, metric),
            "share": metric.startswith("top") or not metric,
            "source": _number(baseline.value) if baseline is not None else None,
        },
        "columns": [{"title": cut(title), "name": cut(name)} for title, name in shown],
        "rows": [
            _row(result, metric, [name for _, name in shown], judged.get(_key(result), ""))
            for result in report.results
        ],
        "searches": [
            {"variant": cut(variant), "format": cut(form), "trials": list(map(_trial, trials[:TRIALS]))}
            for (variant, form), trials in _searches(report).items()
        ],
        "devices": [
            {"name": cut(device), "found": _flat(report.environment.get(device, {}))}
            for device in report.devices()
        ],
        "gates": [_gate(verdict) for verdict in sorted(report.gates, key=_urgency)],
        "source": _source(report),
        "run": _run(report),
        "notes": [cut(note, SENTENCE) for note in report.run.notes],
        "command": cut(report.run.command, SENTENCE),
    }


def cut(text: str, longest: int = NAME) -> str:
    """Text without control characters, and not so long that it hides the rest of the page."""
    told = printable(text)
    return told if len(told) <= longest else f"{told[:longest]}… ({len(told):,} characters)"


def higher_is_better(report: Report, metric: str) -> bool:
    """A drop is positive where the artifact is worse: that tells which way a metric points."""
    baseline = report.source.measurements.get(metric) if report.source is not None else None
    if baseline is None:
        return True
    pairs = (
        (row.measurements[metric].value, row.measurements[f"{metric}_drop"].value)
        for row in report.results
        if metric in row.measurements and f"{metric}_drop" in row.measurements
    )
    return sum((baseline.value - value) * drop for value, drop in pairs) >= 0


def _key(judged: Result | Verdict) -> tuple[str, str, str]:
    return judged.variant, judged.format, judged.device


def _urgency(verdict: Verdict) -> tuple[bool, int]:
    return not verdict.blocks, ("fail", "undecided", "pass").index(verdict.status)


def _judged(verdicts: Iterable[Verdict]) -> dict[tuple[str, str, str], str]:
    """The worst that the gates say of each result."""
    return {_key(verdict): verdict.status for verdict in sorted(verdicts, key=_urgency, reverse=True)}


def _verdict(report: Report) -> Data:
    broken = sum(row.status != "ok" for row in report.results)
    if report.source is not None and report.source.status != "ok":
        broken += 1
    stopping = [verdict for verdict in report.gates if verdict.blocks or verdict.status == "fail"]
    failed = sum(verdict.status == "fail" for verdict in report.gates)
    undecided = sum(verdict.status == "undecided" for verdict in report.gates)
    counts = [
        f"{broken} of {len(report.results)} could not be built or measured" if broken else "",
        f"{failed} of {len(report.gates)} gates failed" if failed else "",
        f"{undecided} of {len(report.gates)} gates undecided: too few samples" if undecided else "",
    ]
    told = [part for part in counts if part]
    if broken:
        status, headline = "broken", "Incomplete"
    elif any(verdict.status == "fail" for verdict in stopping):
        status, headline = "fail", "Failed"
    elif stopping:
        status, headline = "undecided", "Undecided"
    elif report.gates:
        status, headline = "pass", "Passed"
        told = told or [f"{len(report.gates)} of {len(report.gates)} gates passed"]
    else:
        status, headline = "none", "Not judged"
        told = ["the recipe has no gates"]
    return {"status": status, "headline": headline, "told": "; ".join(told) + "."}


def _row(result: Result, metric: str, shown: Sequence[str], judged: str) -> Data:
    found = result.measurements
    latency = "latency_p50_ms" if "latency_p50_ms" in found else "estimated_latency_ms"
    return {
        "variant": cut(result.variant),
        "format": cut(result.format),
        "device": cut(result.device),
        "status": result.status,
        "gate": judged,
        "reason": cut(result.reason, SENTENCE),
        "cells": [_cell(name, found.get(name)) for name in shown],
        "accuracy": _point(metric or "agreement", found.get(metric or "agreement")),
        "size": _point("size_bytes", found.get("size_bytes")),
        "latency": _point(latency, found.get(latency)),
        "estimated": latency not in found or latency == "estimated_latency_ms",
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
        "measurements": [_measurement(name, value) for name, value in found.items()],
        "layers": _layers(result),
        "flips": _flips(result),
        "notes": [cut(note, SENTENCE) for note in result.notes],
        "facts": _facts(result),
    }


def _point(name: str, measurement: Measurement | None) -> Data | None:
    if measurement is None or not math.isfinite(measurement.value):
        return None
    return {"value": measurement.value, "text": _interval(name, measurement, plain=True)}


def _cell(name: str, measurement: Measurement | None) -> list[Any] | None:
    return None if measurement is None else [show(name, measurement), _number(measurement.value)]


def _measurement(name: str, measurement: Measurement) -> list[str]:
    counted = "" if measurement.n is None else f"{measurement.n:,}"
    return [cut(name), show(name, measurement), _interval(name, measurement), counted]


def _interval(name: str, measurement: Measurement, *, plain: bool = False) -> str:
    """Its 95 % interval; ``plain``: the value itself before it."""
    told = show(name, measurement) if plain else ""
    if measurement.ci95 is None:
        return told
    low, high = (show(name, measurement.model_copy(update={"value": end})) for end in measurement.ci95)
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


def _number(value: float) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def _flips(result: Result) -> Data | None:
    if not result.flips:
        return None
    rows = [[flip.sample, flip.label, flip.answer, f"{flip.margin:.3g}"] for flip in result.flips[:FLIPS]]
    confused = Counter((flip.label, flip.answer) for flip in result.flips)
    often = [[*pair, count] for pair, count in confused.most_common(CONFUSIONS) if count > 1]
    return {"rows": rows, "often": often, "count": len(result.flips)}


def _searches(report: Report) -> dict[tuple[str, str], tuple[Trial, ...]]:
    """Trials of each artifact, once: it is the same file on every device. The smallest file first."""
    found = {(row.variant, row.format): row.trials for row in report.results if row.trials}
    return {key: tuple(sorted(trials, key=lambda trial: trial.size_bytes)) for key, trials in found.items()}


def _trial(trial: Trial) -> Data:
    more = len(trial.raised) - RAISED
    raised = ", ".join(trial.raised[:RAISED]) + (f" and {more} more" if more > 0 else "")
    return {
        "name": cut(trial.name),
        "size": trial.size_bytes,
        "drop": _number(trial.drop),
        "status": trial.status,
        "cells": [
            f"{trial.size_bytes:,} B",
            f"{trial.drop:.2%}",
            "" if trial.agreement is None else f"{trial.agreement:.1%}",
            "" if trial.snr_db is None else f"{trial.snr_db:.1f} dB",
            f"{trial.samples:,}" if trial.samples else "",
            {"chosen": "chosen", "kept": "on the front", "dominated": ""}[trial.status],
            cut(raised, SENTENCE),
        ],
    }


def _gate(verdict: Verdict) -> Data:
    metric, kind, written = [*verdict.gate.split(" "), "", ""][:3]
    # A ratio has no unit, and neither has growth that is limited to a share.
    plain = kind == "max_ratio" or written.endswith("%")
    name = "" if plain else f"{metric}_drop" if kind == "max_drop" else metric

    def told(value: float | None) -> str:
        if value is None:
            return ""
        if written.endswith("%"):
            return f"{value:+.1%}"
        return show(name, Measurement(value=value, unit="" if plain else UNITS.get(metric, "")))

    sure = "" if verdict.confidence is None else f"{verdict.confidence:.4g} sure"
    if verdict.bounds is not None:
        sure += f": between {told(verdict.bounds[0])} and {told(verdict.bounds[1])}"
    needed = "" if verdict.samples_needed is None else f"{verdict.samples_needed:,} samples would decide"
    return {
        "status": verdict.status,
        "blocks": verdict.blocks,
        "gate": cut(verdict.gate),
        "artifact": f"{cut(verdict.variant)}.{cut(verdict.format)}",
        "device": cut(verdict.device),
        "measured": told(verdict.measured),
        "limit": told(verdict.limit),
        "sure": sure.lstrip(": "),
        "p": "" if verdict.p_value is None else f"{verdict.p_value:.2g}",
        "reason": "; ".join(part for part in (cut(verdict.reason, SENTENCE), needed) if part),
    }


def _source(report: Report) -> Data | None:
    source = report.source
    if source is None:
        return None
    return {
        "facts": [
            [title, cut(value, SENTENCE)]
            for title, value in (
                ("file", source.path),
                ("format", source.format),
                ("size", f"{source.size_bytes:,} B"),
                ("runtime", source.runtime),
                ("digest", source.digest),
                ("status", "" if source.status == "ok" else f"{source.status}: {source.reason}"),
            )
            if value
        ],
        "measurements": [_measurement(name, value) for name, value in source.measurements.items()],
    }


def _run(report: Report) -> list[list[str]]:
    run = report.run
    facts = [
        ("started", run.started),
        ("took", f"{run.seconds:,.1f} s"),
        ("edgeopt", run.edgeopt),
        ("evaluation samples", f"{run.samples:,}"),
        ("recipe digest", run.recipe_digest),
        ("calibration digest", run.calibration_digest),
        ("evaluation digest", run.evaluation_digest),
    ]
    return [[title, cut(value)] for title, value in facts if value]


def _flat(found: dict[str, Any], above: str = "") -> list[list[str]]:
    """What an agent found, one line each; runtimes and the like with their own name before them."""
    lines: list[list[str]] = []
    for key, value in found.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and not above:
            lines += _flat(value, f"{name}: ")
        elif value is not None and value != []:
            told = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append([cut(name), cut(told)])
    return lines
