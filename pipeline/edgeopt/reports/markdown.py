"""The report as Markdown, for pull requests."""

from collections.abc import Sequence

from edgeopt.reports.cards import Card, address, cards
from edgeopt.reports.columns import (
    OUTPUT_TITLES,
    are_worth_a_table,
    columns,
    doubts,
    output_columns,
    output_rows,
    show,
)
from edgeopt.reports.plain import printable
from edgeopt.results import (
    ByClass,
    Findings,
    Hop,
    Measurement,
    OutputChange,
    Report,
    Result,
)

LAYERS = 12
"""Number of operators shown per artifact; report.json contains all. The following limit other parts."""
SAMPLES = 5
CLASSES = 3


def render(report: Report, base: str = "") -> str:
    """Markdown text of a report, or of its part for one device.

    ``base`` leads from the file to the run's folder, such as ``../``.
    """
    lines = [f"# {text(report.recipe)}", "", _verdict(report), ""]
    lines += [line for doubt in doubts(report) for line in (f"**{text(doubt)}**", "")]
    lines += [line for card in cards(report) for line in _card(card, base)]
    lines += _source(report)
    for device in report.devices():
        rows = [result for result in report.results if result.device == device]
        lines += [f"## {text(device)}", "", *_table(report, rows), "", *_hops(rows)]
        lines += [*_outputs(rows), *_decisions(report, rows)]
        if device == report.devices()[0]:
            lines += _trials(rows)
        if len(report.devices()) == 1:
            lines += _layers(rows)
    lines += _gates(report) + _environment(report)
    return "\n".join(lines).rstrip() + "\n"


def _verdict(report: Report) -> str:
    failed = [verdict for verdict in report.gates if verdict.status == "fail"]
    undecided = [verdict for verdict in report.gates if verdict.status == "undecided"]
    broken = [result for result in report.results if result.status != "ok"]
    parts = []
    if broken:
        parts.append(f"**{len(broken)} of {len(report.results)} are unavailable**")
    if report.gates:
        parts.append(
            f"**{len(failed)} of {len(report.gates)} gates failed**"
            if failed
            else f"all {len(report.gates) - len(undecided)} {'other ' if undecided else ''}gates pass"
        )
    if undecided:
        parts.append(f"**{len(undecided)} undecided: too few samples**")
    return "; ".join(parts) + "." if parts else "No gates in the recipe."


def _card(card: Card, base: str) -> list[str]:
    """The artifact to ship on one device."""
    artifact = f"`{text(card.path or card.artifact)}`"
    if link := address(card.path, base):
        artifact = f"[{artifact}]({link})"
    found = f": {'nearest ' if card.status == 'none' else ''}{artifact}" if card.artifact else ""
    lines = [f"**{text(card.headline)}**{found}", ""]
    lines += [f"- {text(line.title)}: {text(line.text)}" for line in card.lines]
    mark = "**" if card.status == "none" else ""
    lines += [f"- {mark}{text(card.reason)}{mark}"] if card.reason else []
    lines += [f"- `{text(card.pull)}`"] if card.pull else []
    return [*lines, ""]


def _source(report: Report) -> list[str]:
    source = report.source
    if source is None:
        return []
    failed = [
        f"{text(info.name)} could not be computed: {text(info.reason)}"
        for info in report.metrics
        if info.reason
    ]
    values = ", ".join(f"{name} {show(value)}" for name, value in source.measurements.items())
    summary = values or source.reason or "no metric requested"
    return [
        f"Source model `{text(source.path)}` ({source.format}, {source.size_bytes:,} B, "
        f"{text(source.runtime)}): {text(summary)}, on {report.run.samples} samples.",
        "",
        *(f"- **{line}**" for line in failed),
        *([""] if failed else []),
    ]


def _table(report: Report, rows: Sequence[Result]) -> list[str]:
    shown = columns(report, rows)
    lines = [
        "| variant | format | status | " + " | ".join(title for title, _ in shown) + " |",
        "|---|---|---|" + "---:|" * len(shown),
    ]
    for row in rows:
        values = [show(row.measurements.get(name)) for _, name in shown]
        lines.append(f"| {text(row.variant)} | {row.format} | {row.status} | " + " | ".join(values) + " |")
    reasons = [
        f"- **{text(row.variant)}.{row.format}** {row.status}: {text(row.reason)}"
        for row in rows
        if row.reason
    ]
    notes = [f"- {text(row.variant)}.{row.format}: {text(note)}" for row in rows for note in row.notes]
    return [*lines, "", *reasons, *notes] if reasons or notes else lines


def _hops(rows: Sequence[Result]) -> list[str]:
    lines = [
        "Change of the outputs in each step:",
        "",
        "| artifact | step | SNR | largest error | agreement | transposes |",
    ]
    lines.append("|---|---|---:|---:|---:|---:|")
    count = len(lines)
    for row in rows:
        for index, hop in enumerate(row.hops):
            last = index == len(row.hops) - 1
            transposes = str(row.transposes) if last and row.transposes is not None else ""
            lines.append(
                f"| {text(row.variant)}.{row.format} | {text(hop.stage)} | {_hop(hop)} | {transposes} |"
            )
            if len(hop.outputs) > 1:
                lines += [f"| | output {text(each.name)} | {_hop(each)} | |" for each in hop.outputs]
    return [*lines, ""] if len(lines) > count else []


def _outputs(rows: Sequence[Result]) -> list[str]:
    """Every output of the artifacts with several, or with parts that became constant."""
    others = output_columns(rows)
    tables = [(row, output_rows(row, others)) for row in rows]
    shown = [(row, lines) for row, lines in tables if are_worth_a_table(lines)]
    if not shown:
        return []
    titles = ["artifact", "output", *OUTPUT_TITLES, *map(text, others), "parts that died"]
    return [
        "Outputs, compared with those of the original model:",
        "",
        f"| {' | '.join(titles)} |",
        f"|---|---|{'---:|' * (len(titles) - 3)}---|",
        *(
            f"| {text(row.variant)}.{row.format} | {' | '.join(map(text, cells))} |"
            for row, lines in shown
            for cells in lines
        ),
        "",
    ]


def _decisions(report: Report, rows: Sequence[Result]) -> list[str]:
    """How many decisions each artifact changed, the samples that changed most, and the largest losses."""
    changed = [(row, found) for row in rows for found in row.findings if found.changed]
    if not changed:
        return []
    lines = [
        f"Decisions that changed, of {report.run.samples:,} samples:",
        "",
        "| artifact | changed | farther from the label | changed most (agreement) | largest losses |",
        "|---|---:|---:|---|---|",
    ]
    for row, found in changed:
        worse = "" if found.worse is None else f"{found.worse:,}"
        artifact = f"{row.variant}.{row.format}" + (f", {found.head}" if found.head else "")
        cells = [artifact, f"{found.changed:,}", worse, _most(found), _losses(report, found)]
        lines.append(f"| {' | '.join(map(text, cells))} |")
    return [*lines, ""]


def _most(found: Findings) -> str:
    return ", ".join(
        f"{one.sample}" + ("" if one.agreement is None else f" ({one.agreement:.2%})")
        for one in found.samples[:SAMPLES]
    )


def _losses(report: Report, found: Findings) -> str:
    """The classes that lost most, by each table of classes."""
    parts = []
    for chart in (chart for chart in found.charts if isinstance(chart, ByClass)):
        losses = []
        for row in chart.rows[:CLASSES]:
            if row.before is None or row.after is None or row.after >= row.before:
                continue
            name = report.labels[row.label] if 0 <= row.label < len(report.labels) else str(row.label)
            before, after = (
                Measurement(value=each, kind=chart.shown).text for each in (row.before, row.after)
            )
            losses.append(f"{name} {before} → {after}")
        parts += [f"{chart.title}: {', '.join(losses)}"] if losses else []
    return "; ".join(parts)


def _trials(rows: Sequence[Result]) -> list[str]:
    """Candidates of the searches, smallest file first."""
    lines: list[str] = []
    for row in rows:
        candidates = [trial for trial in row.trials if trial.status != "alone"]
        if not candidates:
            continue
        lines += [f"### Search for {text(row.variant)}.{row.format}", ""]
        lines += ["| trial | size | drop | agreement | SNR | | layers in higher precision |"]
        lines += ["|---|---:|---:|---:|---:|---|---|"]
        for trial in sorted(candidates, key=lambda trial: trial.size_bytes):
            agreement = "" if trial.agreement is None else f"{trial.agreement:.2%}"
            snr = "" if trial.snr_db is None else f"{trial.snr_db:.1f} dB"
            mark = {"chosen": "**chosen**", "kept": "Pareto-optimal"}.get(trial.status, "")
            lines.append(
                f"| {text(trial.name)} | {trial.size_bytes:,} B | {trial.drop:.2%} | {agreement} | {snr} "
                f"| {mark} | {text(', '.join(trial.raised))} |"
            )
        lines.append("")
    return lines


def _layers(rows: Sequence[Result]) -> list[str]:
    """One table per artifact with operator measurements, most expensive first."""
    lines: list[str] = []
    for row in rows:
        if not row.layers:
            continue
        keys = list(dict.fromkeys(key for layer in row.layers for key in layer))
        cost = next((key for key in ("ms", "cycles", "npu_cycles") if key in keys), None)
        ordered = sorted(row.layers, key=lambda layer: -float(layer.get(cost) or 0)) if cost else row.layers
        lines += [f"### Operators of {text(row.variant)}.{row.format}, the {LAYERS} most expensive", ""]
        lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
        for layer in ordered[:LAYERS]:
            cells = ("" if layer.get(key) is None else text(str(layer[key])) for key in keys)
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _hop(hop: Hop | OutputChange) -> str:
    if hop.snr_db is None or hop.max_abs_error is None:
        return f"{hop.status}: {text(hop.reason)} | | "
    agreement = "" if hop.agreement is None else f"{hop.agreement:.2%}"
    mark = " **broken**" if hop.status == "broken" else ""
    return f"{hop.snr_db:.1f} dB{mark} | {hop.max_abs_error:.2g} | {agreement}"


def _gates(report: Report) -> list[str]:
    if not report.gates:
        return []
    lines = [
        "## Gates",
        "",
        "| gate | variant | format | device | measured | verdict |",
        "|---|---|---|---|---:|---|",
    ]
    for verdict in report.gates:
        measured = "–" if verdict.measured is None else f"{verdict.measured:.6g}"
        outcome = "pass" if verdict.status == "pass" else f"**{verdict.status}**: {text(verdict.reason)}"
        lines.append(
            f"| {text(verdict.gate)} | {text(verdict.variant)} | {verdict.format} "
            f"| {text(verdict.device)} | {measured} | {outcome} |"
        )
    return [*lines, ""]


def _environment(report: Report) -> list[str]:
    run = report.run
    lines = ["## How it was made", "", f"- {run.started}, {run.seconds:.1f} s, edgeopt {run.edgeopt}"]
    lines.append(f"- command: `{text(run.command)}`")
    lines += [f"- {text(note)}" for note in run.notes]
    for device, facts in report.environment.items():
        summary = ", ".join(
            f"{key} {text(str(facts[key]))}"
            for key in ("cpu", "cores", "os", "python")
            if facts.get(key) is not None
        )
        lines.append(f"- {text(device)}: {summary or 'no response'}")
    return lines


def text(value: str) -> str:
    """Escape plain text for Markdown: no character starts a table cell, a tag or a line."""
    flat = " ".join(printable(value).split())
    for sign, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'"), ("*", "\\*")):
        flat = flat.replace(sign, escaped)
    return flat
