"""The report as a fragment of HTML for notebooks: what to ship and the tables, without a script."""

from collections.abc import Iterable
from html import escape

from edgeopt.reports.cards import cards
from edgeopt.reports.columns import columns, doubts, show
from edgeopt.reports.plain import printable
from edgeopt.results import Report, Result

COLOURS = {"ship": "#146c2e", "unjudged": "#7a5300", "none": "#b3261e"}


def render(report: Report) -> str:
    """The recommendations, and one table per device; names are text, never markup."""
    parts = [f"<h3>edgeopt: {_text(report.recipe)}</h3>"]
    parts += [
        f'<p style="border-left:4px solid {COLOURS[card.status]};padding-left:.6em">{_text(card.summary)}</p>'
        for card in cards(report)
    ]
    parts += [f"<p><em>{_text(doubt)}</em></p>" for doubt in doubts(report)]
    for device in report.devices():
        rows = [row for row in report.results if row.device == device]
        parts.append(_table(report, device, rows))
    if report.folder is not None:
        parts.append(f"<p>The whole report: <code>{_text(str(report.folder / 'report.html'))}</code></p>")
    return "\n".join(parts)


def _table(report: Report, device: str, rows: list[Result]) -> str:
    shown = columns(report, rows)
    head = _row("th", ("variant", "format", "status", *(title for title, _ in shown)))
    body = [
        _row(
            "td",
            (row.variant, row.format, row.status, *(show(row.measurements.get(name)) for _, name in shown)),
        )
        for row in rows
    ]
    reasons = [
        f"<li>{_text(f'{row.variant}.{row.format} {row.status}: {row.reason}')}</li>"
        for row in rows
        if row.reason
    ]
    missing = f"<ul>{''.join(reasons)}</ul>" if reasons else ""
    return f"<table><caption>{_text(device)}</caption>{head}{''.join(body)}</table>{missing}"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(value: str) -> str:
    return escape(printable(value))
