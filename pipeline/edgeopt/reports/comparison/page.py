"""The comparison of several runs as a page: charts and table of a report, with a colour for each run."""

from collections.abc import Mapping
from pathlib import Path

from edgeopt.reports.columns import higher_is_better, show
from edgeopt.reports.comparison import Cell, Compared, Comparison, Line, change_text
from edgeopt.reports.history import address_of
from edgeopt.reports.html import page
from edgeopt.reports.pagedata import shown_as_share, verdict_of
from edgeopt.reports.pagedata.findings import Data, cut, finite
from edgeopt.reports.pagedata.rows import SENTENCE, Scale, charted
from edgeopt.results import Report

SCRIPTS = ("elements.js", "theme.js", "scales.js", "charts.js", "table.js", "compare.js")


def render(comparison: Comparison, folders: Mapping[str, Path], place: Path) -> str:
    """The page; ``place`` is its future path, to which the links to the runs in ``folders`` are relative."""
    first = comparison.runs[0].report
    links = {name: address_of(folder, place) for name, folder in folders.items()}
    scales = {name: _scale(comparison, report) for name, report in comparison.runs}
    changed = any(cell.change is not None for line in comparison.lines for cell in line.cells)
    columns = [{"title": cut(title), "name": cut(name)} for title, name in comparison.shown]
    if changed:
        columns.insert(1, {"title": "change", "name": "change"})
    source = scales[comparison.runs[0].name].source
    data = {
        "names": {"variant": "artifact", "format": "run"},
        "join": " in ",
        "metric": {
            "name": cut(comparison.metric or "agreement"),
            "higher": comparison.higher,
            "share": shown_as_share(first, comparison.metric),
            "source": source,
        },
        "columns": columns,
        "rows": [
            _row(comparison, line, run, cell, scales[run.name], changed) | {"link": links[run.name]}
            for line in comparison.lines
            for run, cell in zip(comparison.runs, line.cells, strict=True)
        ],
        "searches": [],
        "judged": any(run.report.gates for run in comparison.runs),
        "devices": [cut(device) for device in dict.fromkeys(line.key[2] for line in comparison.lines)],
        "runs": [_run(run, links[run.name]) for run in comparison.runs],
        "notes": [cut(note, SENTENCE) for note in comparison.notes],
    }
    return page("compare.html", "edgeopt comparison", cut(first.recipe), SCRIPTS, data)


def _scale(comparison: Comparison, report: Report) -> Scale:
    source = report.source.measurements.get(comparison.metric) if report.source is not None else None
    sign = 1.0 if higher_is_better(report, comparison.metric) else -1.0
    return Scale(comparison.metric, finite(source.value) if source is not None else None, sign)


def _row(comparison: Comparison, line: Line, run: Compared, cell: Cell, scale: Scale, changed: bool) -> Data:
    variant, form, device = line.key
    measurements = cell.result.measurements if cell.result is not None else {}
    cells = [
        [show(measurements[name]), finite(measurements[name].value)] if name in measurements else None
        for _, name in comparison.shown
    ]
    if changed:
        known = cell.change is not None and cell.change.measured is not None
        drop = cell.change.measured if cell.change is not None else None
        cells.insert(
            1, [change_text(cell, comparison), None if drop is None else finite(drop)] if known else None
        )
    return {
        "variant": cut(f"{variant}.{form}"),
        "format": cut(run.name),
        "device": cut(device),
        "status": cell.status,
        "gate": cell.gate,
        "reason": cut(cell.reason, SENTENCE),
        "cells": cells,
        **charted(measurements, scale),
    }


def _run(run: Compared, link: str) -> Data:
    report = run.report
    broken = sum(row.status != "ok" for row in report.results)
    status, headline = verdict_of(bool(broken), report.gates)
    return {
        "name": cut(run.name),
        "link": link,
        "status": status,
        "headline": headline,
        "facts": [
            ["started", cut(report.run.started)],
            ["measured", f"{len(report.results) - broken} of {len(report.results)}"],
            ["gates failed", f"{sum(gate.status == 'fail' for gate in report.gates)} of {len(report.gates)}"],
            ["samples", f"{report.run.samples:,}"],
            ["edgeopt", cut(report.run.edgeopt)],
            *(
                [cut(f"ship on {report.place(one.device)}"), cut(f"{one.variant}.{one.format}")]
                for one in report.recommended
                if one.status == "ship"
            ),
        ],
    }
