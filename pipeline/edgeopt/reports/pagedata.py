"""What the page shows of a report: text as people read it, numbers to sort and draw by."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from edgeopt.reports.markdown import columns, show
from edgeopt.reports.pagefindings import Data, class_names, cut, files, finite, pictures
from edgeopt.reports.pagerows import SENTENCE, measured, row_of, search_of, searches
from edgeopt.results import Kind, Measurement, Report, Result, Verdict, kind_of

DOCUMENT = 60_000
"""Characters shown of a recipe."""


def collect(report: Report) -> Data:
    """Everything the page's script needs, made of text, numbers, lists and mappings alone."""
    metric = report.primary_metric
    shown = columns(report, report.results)
    names = [name for _, name in shown]
    judged = _judged(report.gates)
    source = report.source
    baseline = source.measurements.get(metric) if source is not None else None
    return {
        "recipe": cut(report.recipe),
        "verdict": _verdict(report),
        "metric": {
            "name": cut(metric or "agreement"),
            "higher": higher_is_better(report, metric),
            "share": shown_as_share(report, metric),
            "source": finite(baseline.value) if baseline is not None else None,
        },
        "columns": [{"title": cut(title), "name": cut(name)} for title, name in shown],
        "rows": [
            row_of(result, metric, names, judged.get(_key(result), ""), diagnosis(report, result))
            for result in report.results
        ],
        "searches": [search_of(*key, trials) for key, trials in searches(report).items()],
        "files": files(report),
        "labels": class_names(report.labels),
        "thumbnails": pictures(report.thumbnails),
        "devices": [
            {"name": cut(device), "found": _flat(report.environment.get(device, {}))}
            for device in report.devices()
        ],
        "gates": [_gate(report, verdict) for verdict in sorted(report.gates, key=_urgency)],
        "source": _source(report),
        "run": _run(report),
        "notes": [cut(note, SENTENCE) for note in report.run.notes],
        "command": cut(report.run.command, SENTENCE),
        "document": cut(report.run.document, DOCUMENT),
    }


def diagnosis(report: Report, result: Result) -> str:
    """The command that tells which layers of an artifact lose accuracy."""
    try:
        words = shlex.split(report.run.command)
    except ValueError:  # a command of another hand
        words = []
    named = words[2] if len(words) > 2 and not words[2].startswith("-") else "recipe.yaml"
    return shlex.join(["edgeopt", "diagnose", named, "--variant", result.variant, "--format", result.format])


def shown_as_share(report: Report, metric: str) -> bool:
    """Whether the charts' axis is one of percentages: of the metric, or of the agreement in its place."""
    rows = [row.measurements for row in report.results]
    return not metric or any(row[metric].kind == "fraction" for row in rows if metric in row)


def higher_is_better(report: Report, metric: str) -> bool:
    """Which way a metric points."""
    for info in report.metrics:
        if info.name == metric:
            return info.better == "higher"
    # An old report does not say: there, a drop is positive where the artifact is worse.
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


class Judged(Protocol):
    """What of a verdict decides how a run stands."""

    @property
    def status(self) -> str: ...

    @property
    def blocks(self) -> bool: ...


def standing(broken: bool, gates: Sequence[Judged]) -> tuple[str, str]:
    """How a run stands, as a word for the style and a word for people."""
    stopping = [gate for gate in gates if gate.blocks or gate.status == "fail"]
    if broken:
        return "broken", "Incomplete"
    if any(gate.status == "fail" for gate in stopping):
        return "fail", "Failed"
    if stopping:
        return "undecided", "Undecided"
    return ("pass", "Passed") if gates else ("none", "Not judged")


def _verdict(report: Report) -> Data:
    broken = sum(row.status != "ok" for row in report.results)
    if report.source is not None and report.source.status != "ok":
        broken += 1
    failed = sum(verdict.status == "fail" for verdict in report.gates)
    undecided = sum(verdict.status == "undecided" for verdict in report.gates)
    counts = [
        f"{broken} of {len(report.results)} could not be built or measured" if broken else "",
        f"{failed} of {len(report.gates)} gates failed" if failed else "",
        f"{undecided} of {len(report.gates)} gates undecided: too few samples" if undecided else "",
    ]
    status, headline = standing(bool(broken), report.gates)
    told = [part for part in counts if part]
    if not told:
        passed = f"{len(report.gates)} of {len(report.gates)} gates passed"
        told = [passed if report.gates else "the recipe has no gates"]
    return {
        "status": status,
        "headline": headline,
        "told": "; ".join(told) + ".",
        "detectable": _detectable(report),
    }


def _detectable(report: Report) -> str:
    """The smallest drop that the evaluation data can show, of the artifact where that is largest."""
    name = f"{report.primary_metric}_detectable_drop"
    found = [row.measurements[name] for row in report.results if name in row.measurements]
    if not found:
        return ""
    largest = show(max(found, key=lambda measurement: measurement.value)).lstrip("+")
    return f"{report.run.samples:,} evaluation samples can show drops of {largest} or more."


def _gate(report: Report, verdict: Verdict) -> Data:
    metric, kind, written = [*verdict.gate.split(" "), "", ""][:3]
    # A ratio has no unit, and neither has growth that is limited to a share.
    plain = kind == "max_ratio" or written.endswith("%")
    shown = _kind_of(report, metric)
    if kind == "max_drop" and shown == "fraction":
        shown = "points"

    def told(value: float | None) -> str:
        if value is None:
            return ""
        if written.endswith("%"):
            return f"{value:+.1%}"
        return show(Measurement(value=value, kind="number" if plain else shown))

    sure = "" if verdict.confidence is None else f"{100 * verdict.confidence:.4g} % sure"
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


def _kind_of(report: Report, name: str) -> Kind:
    """How the measurement of a gate is shown."""
    rows = [row.measurements for row in report.results]
    return next((row[name].kind for row in rows if name in row), kind_of(name))


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
        "measurements": [measured(name, value) for name, value in source.measurements.items()],
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
