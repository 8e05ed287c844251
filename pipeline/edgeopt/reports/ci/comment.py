"""The verdict on a run as Markdown, for a comment on a pull request: what changed, and how sure that is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from edgeopt.errors import shortened
from edgeopt.evaluation.judgement import Judgement, key_of
from edgeopt.reports.columns import doubts
from edgeopt.reports.markdown import text
from edgeopt.results import Measurement, Report, Result, Verdict

LIMIT = 65_000
"""Characters of a comment: GitHub accepts 65,536, with the mark of its recipe; GitLab accepts a million."""
LENGTHS = (1_000, 100, 30, 10, 3)
"""Rows of every list: a comment over the limit is rendered again with fewer."""
LONGEST = 400
"""Characters of one reason."""
MARKS = {"pass": "✓", "fail": "**✗**", "undecided": "**?**", "error": "**✗**"}
COSTS = ("size_bytes", "latency_ratio", "arena_bytes")
"""Measurements shown before and after, beside the metric."""
TITLES = {"size_bytes": "size", "latency_ratio": "÷ float", "arena_bytes": "arena"}


class Row(NamedTuple):
    """One artifact before and after; ``before`` is empty if it is new."""

    mark: str
    name: str
    before: Mapping[str, float]
    result: Result | None
    certainty: str
    unchanged: bool = False


def render(judgement: Judgement, *, title: str = "", links: Mapping[str, str] | None = None) -> str:
    """Markdown of at most ``LIMIT`` characters: the verdict, its reasons, each artifact before and after.

    ``links``: addresses of further pages by their titles.
    """
    return _fitting(lambda rows: _lines(judgement, title, links or {}, rows))


def render_failure(name: str, message: str, *, links: Mapping[str, str] | None = None) -> str:
    """Markdown for a run without a report: the message that ended it."""
    fence = "```"
    while fence in message:
        fence += "`"
    shown = shortened(message, LIMIT // 2)
    lines = [f"### {MARKS['error']} edgeopt: {text(name)}: **could not run**", "", fence, shown, fence]
    return _fitting(lambda rows: [*lines, "", _footer([], links or {})])


def _fitting(lines: Callable[[int], Iterable[str]]) -> str:
    body = ""
    for rows in LENGTHS:
        body = "\n".join(lines(rows)).rstrip() + "\n"
        if len(body) <= LIMIT:
            break
    return body[:LIMIT]


def _lines(judgement: Judgement, title: str, links: Mapping[str, str], count: int) -> Iterable[str]:
    report = judgement.report
    name = f"{title}: {report.recipe}" if title and title != report.recipe else report.recipe
    yield f"### {MARKS[judgement.word]} edgeopt: {text(name)}: {_strong(judgement)}"
    yield ""
    for doubt in doubts(report):
        yield from (f"> {text(doubt)}", "")
    yield from _capped(list(_reasons(judgement)), count, "- and {} more, in the report", "")
    ship = [each for each in report.recommended if each.status == "ship"] if judgement.word == "pass" else []
    if ship:
        names = [
            f"**{text(each.variant)}.{each.format}** on {text(report.place(each.device))}" for each in ship
        ]
        yield from (f"Ship {', '.join(names)}.", "")
    rows = list(_rows(judgement))
    changed, unchanged = ([row for row in rows if row.unchanged is same] for same in (False, True))
    if changed:
        yield from _table(report, changed, count)
    if unchanged:
        summary = f"{_count(len(unchanged), 'unchanged artifact')}"
        yield from _collapsed(summary, _table(report, unchanged, count))
    if judgement.verdicts:
        passed = sum(verdict.status == "pass" for verdict in judgement.verdicts)
        summary = f"{_count(len(judgement.verdicts), 'limit')}: {passed} pass"
        yield from _collapsed(summary, _limits(judgement.verdicts, count))
    facts = [f"{report.run.samples:,} evaluation samples, compared pairwise"] if report.run.samples else []
    if judgement.changes is None:
        facts.append("before: the original model")
    if any("latency_ratio" in (row.result.measurements if row.result else {}) for row in rows):
        facts.append("÷ float: latency relative to the float artifact, measured in turns; not judged")
    yield _footer(facts, links)


def _strong(judgement: Judgement) -> str:
    words = headline(judgement)
    return words if judgement.word == "pass" else f"**{words}**"


def headline(judgement: Judgement) -> str:
    """The verdict in a few words."""
    worse = [verdict for verdict in judgement.compared if verdict.blocks]
    failed = [gate for gate in judgement.gates if gate.blocks]
    parts = []
    if judgement.missing:
        parts.append(f"{_count(len(judgement.missing), 'artifact')} could not be produced or run")
    elif judgement.word == "error":
        parts.append("a metric or the original model could not be evaluated")
    if any(verdict.status == "fail" for verdict in worse):
        parts.append("worse than the baseline")
    elif worse:
        parts.append("undecided whether worse than the baseline: too few samples")
    elif judgement.changes is not None:
        parts.append("no worse than the baseline")
    if failed:
        parts.append(f"{len(failed)} of {_count(len(judgement.gates), 'gate')} did not pass")
    elif judgement.gates:
        parts.append(f"all {len(judgement.gates)} gates pass")
    return ", ".join(parts) or "no gates and no baseline"


def _reasons(judgement: Judgement) -> Iterable[str]:
    """One line for everything that makes the verdict what it is."""
    for row in judgement.missing:
        yield f"- **{artifact(row)}** {row.status}: {_short(row.reason)}"
    missing = {artifact(row) for row in judgement.missing}
    for verdict in judgement.blocking:
        if artifact(verdict) not in missing:
            outcome = f"{verdict.status}: {_short(verdict.reason)}"
            yield f"- **{artifact(verdict)}**, {text(verdict.gate)}: {outcome}"


def artifact(of: Result | Verdict) -> str:
    """The name of an artifact in Markdown; a gate that applies to no result has none."""
    return f"{text(of.variant)}.{of.format} on {text(of.device)}" if of.variant != "-" else "the recipe"


def _rows(judgement: Judgement) -> Iterable[Row]:
    report = judgement.report
    if judgement.changes is None:
        source = report.source.measurements if report.source is not None else {}
        before = {name: value.value for name, value in source.items()}
        for result in report.results:
            mine = [gate for gate in judgement.gates if key_of(gate) == key_of(result)]
            yield Row(_mark(mine, result), artifact(result), before, result, _certainty(mine, result, report))
        return
    for change in judgement.changes:
        entry = change.entry
        verdicts = [*change.verdicts, *(v for v in judgement.latency if key_of(v) == entry.key)]
        name = f"{text(entry.variant)}.{entry.format} on {text(entry.device)}"
        certainty = _certainty(verdicts, change.result, report)
        mark = _mark(verdicts, change.result if entry.failed is None else None)
        yield Row(mark, name, entry.measurements, change.result, certainty, change.unchanged)
    known = {change.entry.key for change in judgement.changes}
    for result in report.results:
        if key_of(result) not in known:
            reason = "new" if result.status == "ok" else f"new, {result.status}: {_short(result.reason)}"
            yield Row(_mark([], result), artifact(result), {}, result, reason)


def _mark(verdicts: Sequence[Verdict], result: Result | None) -> str:
    if result is not None and result.status != "ok":
        return MARKS["error"]
    statuses = [verdict.status for verdict in verdicts if verdict.blocks]
    return MARKS["fail" if "fail" in statuses else "undecided" if statuses else "pass"]


def _certainty(verdicts: Sequence[Verdict], result: Result | None, report: Report) -> str:
    """How sure the change of the metric is: what its bounds or its interval exclude."""
    if result is None or result.status != "ok":
        return _short(next((v.reason for v in verdicts if v.reason), result.reason if result else ""))
    metric = report.primary_metric
    judged = next((v for v in verdicts if v.confidence is not None and v.gate.startswith(f"{metric} ")), None)
    if judged is not None and judged.reason.startswith("unchanged: "):
        return text(judged.reason.removeprefix("unchanged: "))
    drop = result.measurements.get(f"{metric}_drop")
    kind = drop.kind if drop is not None else "points" if _is_fraction(result, metric) else "number"
    if judged is not None and judged.bounds is not None:
        low, high = (Measurement(value=0.0 - bound, kind=kind).text for bound in judged.bounds)
        sure = f"{judged.confidence:.0%} sure: change between {high} and {low}"
        if judged.status == "undecided" and judged.samples_needed:
            sure += f"; about {judged.samples_needed:,} samples would decide"
        return sure
    if judged is None and drop is not None and drop.ci95 is not None:
        low, high = (Measurement(value=0.0 - bound, kind=kind).text for bound in drop.ci95)
        return f"95% interval of the change: {high} to {low}"
    return _short(judged.reason) if judged is not None else "not compared"


def _is_fraction(result: Result, metric: str) -> bool:
    return metric in result.measurements and result.measurements[metric].kind == "fraction"


def _table(report: Report, rows: Sequence[Row], count: int) -> Iterable[str]:
    metric = report.primary_metric
    titles = {info.name: info.title for info in report.metrics} | TITLES
    names = [metric] if metric else []
    names += [name for name in COSTS if any(name in _after(row) for row in rows)]
    yield f"| | artifact | {' | '.join(text(titles.get(name, name)) for name in names)} | how sure |"
    yield f"|---|---|{'---:|' * len(names)}---|"
    lines = []
    for row in rows:
        cells = [_cell(name, row.before.get(name), _after(row).get(name)) for name in names]
        lines.append(f"| {row.mark} | {row.name} | {' | '.join(cells)} | {row.certainty} |")
    more = f"| | and {{}} more, in the report |{' |' * (len(names) + 1)}"
    yield from _capped(lines, count, more, "")


def _after(row: Row) -> Mapping[str, Measurement]:
    return row.result.measurements if row.result is not None else {}


def _cell(name: str, before: float | None, after: Measurement | None) -> str:
    """``before → after (difference)``, or one value if there is no other."""
    if after is None or before is None:
        value = after or (None if before is None else Measurement.of(name, before))
        return "–" if value is None else text(value.text)
    old = after.model_copy(update={"value": before, "ci95": None}).text
    if old == after.text:
        return text(old)
    difference = ""
    if after.kind == "fraction":
        difference = f" ({Measurement(value=after.value - before, kind='points').text})"
    elif after.kind in ("bytes", "memory") and before:
        difference = f" ({after.value / before - 1:+.1%})"
    return text(f"{old} → {after.text}{difference}")


def _limits(verdicts: Sequence[Verdict], count: int) -> Iterable[str]:
    """Every verdict; those that block first."""
    yield "| | artifact | limit | result |"
    yield "|---|---|---|---|"
    lines = [
        f"| {MARKS[verdict.status]} | {artifact(verdict)} | {text(verdict.gate)} "
        f"| {_short(verdict.reason) or 'within the limit'} |"
        for verdict in sorted(verdicts, key=lambda verdict: not verdict.blocks)
    ]
    yield from _capped(lines, count, "| | and {} more, in the report | | |", "")


def _collapsed(summary: str, lines: Iterable[str]) -> Iterable[str]:
    # Markdown inside HTML needs empty lines around it.
    yield from (f"<details><summary>{summary}</summary>", "", *lines, "</details>", "")


def _capped(lines: Sequence[str], count: int, more: str, end: str) -> Iterable[str]:
    """The first lines, ``more`` with the number of the others, and ``end`` if there are any at all."""
    yield from lines[:count]
    if len(lines) > count:
        yield more.format(f"{len(lines) - count:,}")
    if lines:
        yield end


def _footer(facts: Sequence[str], links: Mapping[str, str]) -> str:
    return " · ".join([*facts, *(f"[{text(title)}]({url})" for title, url in links.items())])


def _short(reason: str) -> str:
    return text(shortened(reason, LONGEST))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
