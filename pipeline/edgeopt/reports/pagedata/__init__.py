"""The data of the HTML page of a report: formatted text, and numbers for sorting and charts."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from edgeopt.reports.cards import address
from edgeopt.reports.columns import columns, doubts, higher_is_better, show
from edgeopt.reports.pagedata.cards import cards_of
from edgeopt.reports.pagedata.findings import Data, class_names, cut, finite, pictures
from edgeopt.reports.pagedata.graph import breakdowns, colours_of, files
from edgeopt.reports.pagedata.rows import SENTENCE, Scale, measured, row_of, search_of, searches
from edgeopt.reports.pagedata.tasks import outputs_of, references_of, samples_per_result, tasks_of
from edgeopt.results import Kind, Measurement, Report, Result, Verdict, kind_of

DOCUMENT = 60_000
"""Maximum number of characters of the recipe."""


def collect(report: Report, base: str = "") -> Data:
    """All data for the page's script, as JSON-compatible values.

    ``base`` leads from the page to the run's folder, such as ``../``.
    """
    metric = report.primary_metric
    shown = columns(report, report.results)
    names = [name for _, name in shown]
    verdicts = _worst_verdicts(report.gates)
    source, references, samples = report.source, references_of(report), samples_per_result(report)
    baseline = source.measurements.get(metric) if source is not None else None
    known = finite(baseline.value) if baseline is not None else None
    higher = higher_is_better(report, metric)
    graphs = breakdowns(report)
    scale = Scale(metric, known, 1.0 if higher else -1.0)
    return {
        "recipe": cut(report.recipe),
        "verdict": _verdict(report),
        "cards": cards_of(report, base),
        "metric": {
            "name": cut(metric or "agreement"),
            "higher": higher,
            "share": shown_as_share(report, metric),
            "source": known,
        },
        "columns": [{"title": cut(title), "name": cut(name)} for title, name in shown],
        "rows": [
            row_of(result, scale, names, verdicts.get(_key(result), ""), diagnosis(report, result), base)
            | {"outputs": outputs_of(result), "tasks": tasks_of(result, references, samples)}
            | colours_of(result, graphs.get((result.variant, result.format)))
            for result in report.results
        ],
        "searches": [search_of(*key, trials) for key, trials in searches(report).items()],
        "files": files(report),
        "links": [[name, address(name, base)] for name in _beside(report)],
        "samples": report.run.samples,
        "labels": class_names(report.labels),
        "thumbnails": pictures(report.thumbnails),
        "image": list(report.image_size) if report.image_size else None,
        "devices": [
            {"name": cut(device), "environment": _flat(report.environment.get(device, {}))}
            for device in report.devices()
        ],
        "gates": [_gate(report, verdict) for verdict in sorted(report.gates, key=_urgency)],
        "source": _source(report),
        "run": _run(report),
        "notes": [cut(note, SENTENCE) for note in report.run.notes],
        "command": cut(report.run.command, SENTENCE),
        "document": cut(report.run.document, DOCUMENT),
    }


def _beside(report: Report) -> tuple[str, ...]:
    """The files of a run beside its page; only a command that shows its progress keeps a log of it."""
    logged = report.run.command.startswith(("edgeopt optimize ", "edgeopt ci "))
    return ("report.json", "report.md", *(("run.log",) if logged else ()))


def diagnosis(report: Report, result: Result) -> str:
    """The command that diagnoses an artifact layer by layer."""
    try:
        words = shlex.split(report.run.command)
    except ValueError:  # a command line that was not written by edgeopt
        words = []
    recipe = words[2] if len(words) > 2 and not words[2].startswith("-") else "recipe.yaml"
    return shlex.join(["edgeopt", "diagnose", recipe, "--variant", result.variant, "--format", result.format])


def shown_as_share(report: Report, metric: str) -> bool:
    """Whether the charts show percentages: for a metric of kind ``fraction``, or agreement instead."""
    rows = [row.measurements for row in report.results]
    return not metric or any(row[metric].kind == "fraction" for row in rows if metric in row)


def _key(verdicts: Result | Verdict) -> tuple[str, str, str]:
    return verdicts.variant, verdicts.format, verdicts.device


def _urgency(verdict: Verdict) -> tuple[bool, int]:
    return not verdict.blocks, ("fail", "undecided", "pass").index(verdict.status)


def _worst_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[str, str, str], str]:
    """The worst gate verdict of each result."""
    return {_key(verdict): verdict.status for verdict in sorted(verdicts, key=_urgency, reverse=True)}


class Judged(Protocol):
    """The fields of a verdict that determine the overall verdict of a run."""

    @property
    def status(self) -> str: ...

    @property
    def blocks(self) -> bool: ...


def verdict_of(broken: bool, gates: Sequence[Judged]) -> tuple[str, str]:
    """Overall verdict of a run: a status for the stylesheet, and a headline."""
    blocking = [gate for gate in gates if gate.blocks or gate.status == "fail"]
    if broken:
        return "broken", "Incomplete"
    if any(gate.status == "fail" for gate in blocking):
        return "fail", "Failed"
    if blocking:
        return "undecided", "Undecided"
    return ("pass", "Passed") if gates else ("none", "No gates")


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
    status, headline = verdict_of(bool(broken), report.gates)
    parts = [part for part in counts if part]
    if not parts:
        passed = f"{len(report.gates)} of {len(report.gates)} gates passed"
        parts = [passed if report.gates else "the recipe has no gates"]
    return {
        "status": status,
        "headline": headline,
        "summary": "; ".join(parts) + ".",
        "detectable": _detectable(report),
        "doubts": [cut(doubt, SENTENCE) for doubt in doubts(report)],
    }


def _detectable(report: Report) -> str:
    """The smallest drop that the evaluation data can detect for every artifact."""
    name = f"{report.primary_metric}_detectable_drop"
    drops = [row.measurements[name] for row in report.results if name in row.measurements]
    if not drops:
        return ""
    largest = show(max(drops, key=lambda measurement: measurement.value)).lstrip("+")
    return f"{report.run.samples:,} evaluation samples can detect drops of {largest} or more."


def _gate(report: Report, verdict: Verdict) -> Data:
    metric, kind, limit = [*verdict.gate.split(" "), "", ""][:3]
    # Ratios and relative growth have no unit.
    plain = kind == "max_ratio" or limit.endswith("%")
    shown = _kind_of(report, metric)
    if kind == "max_drop" and shown == "fraction":
        shown = "points"

    def formatted(value: float | None) -> str:
        if value is None:
            return ""
        if limit.endswith("%"):
            return f"{value:+.1%}"
        return show(Measurement(value=value, kind="number" if plain else shown))

    interval = "" if verdict.confidence is None else f"{100 * verdict.confidence:.4g} %"
    if verdict.bounds is not None:
        interval += f": {formatted(verdict.bounds[0])} to {formatted(verdict.bounds[1])}"
    needed = "" if verdict.samples_needed is None else f"{verdict.samples_needed:,} samples would decide it"
    return {
        "status": verdict.status,
        "blocks": verdict.blocks,
        "gate": cut(verdict.gate),
        "artifact": f"{cut(verdict.variant)}.{cut(verdict.format)}",
        "device": cut(verdict.device),
        "measured": formatted(verdict.measured),
        "limit": formatted(verdict.limit),
        "interval": interval.lstrip(": "),
        "p": "" if verdict.p_value is None else f"{verdict.p_value:.2g}",
        "reason": "; ".join(part for part in (cut(verdict.reason, SENTENCE), needed) if part),
    }


def _kind_of(report: Report, name: str) -> Kind:
    """Display format of the measurement of a gate."""
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
        ("duration", f"{run.seconds:,.1f} s"),
        ("edgeopt", run.edgeopt),
        ("evaluation samples", f"{run.samples:,}"),
        ("recipe digest", run.recipe_digest),
        ("calibration digest", run.calibration_digest),
        ("evaluation digest", run.evaluation_digest),
    ]
    return [[title, cut(value)] for title, value in facts if value]


def _flat(environment: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """The environment of a device as one line per value; nested values get their parent's name as prefix."""
    lines: list[list[str]] = []
    for key, value in environment.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not prefix:
            lines += _flat(value, f"{name}: ")
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append([cut(name), cut(text)])
    return lines
