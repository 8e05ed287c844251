"""Comparison with a baseline as Markdown, for a comment on a pull request."""

from collections.abc import Sequence

from edgeopt.reports.markdown import text
from edgeopt.results import Report, Verdict

MARKS = {"pass": "✓", "fail": "**✗**", "undecided": "**?**"}


def render(report: Report, verdicts: Sequence[Verdict]) -> str:
    """Markdown text: the overall verdict, then one row per artifact and limit with its confidence."""
    blocking = [verdict for verdict in verdicts if verdict.blocks]
    undecided = [verdict for verdict in blocking if verdict.status == "undecided"]
    if not blocking:
        headline = "no worse than the baseline"
    elif len(undecided) == len(blocking):
        headline = "**undecided**: too few samples"
    else:
        headline = "**worse than the baseline**"
    lines = [
        f"### edgeopt: {text(report.recipe)}: {headline}",
        "",
        "| | artifact | limit | result |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {MARKS[verdict.status]} | {text(verdict.variant)}.{verdict.format} on {text(verdict.device)} "
        f"| {text(verdict.gate)} | {text(verdict.reason) or 'within the limit'} |"
        for verdict in sorted(verdicts, key=lambda verdict: not verdict.blocks)
    ]
    lines += ["", f"{report.run.samples:,} evaluation samples, compared pairwise."]
    times = [
        f"{text(row.variant)}.{row.format} on {text(row.device)} {time.value:.3g} ms"
        for row in report.results
        if (time := row.measurements.get("latency_p50_ms")) is not None
    ]
    if times:
        lines.append(f"Latency is informational, since two runs share no clock: {', '.join(times)}.")
    return "\n".join(lines) + "\n"
