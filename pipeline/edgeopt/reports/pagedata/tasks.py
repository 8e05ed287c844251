"""Page data on the decisions of an artifact: the samples that changed most, and the charts of its tasks."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from edgeopt.reports.columns import OUTPUT_TITLES, output_columns, output_rows
from edgeopt.reports.pagedata.drawings import fraction, panes_of
from edgeopt.reports.pagedata.findings import MAX_CLASS_ROWS, Data, cut, finite
from edgeopt.results import (
    ByClass,
    Chart,
    Classes,
    ClassValue,
    Findings,
    Flip,
    Histogram,
    Measurement,
    Plot,
    Reference,
    Report,
    Result,
    SampleChange,
)
from edgeopt.results.findings import MAX_BINS, MAX_CURVE, MAX_DOTS, MAX_SAMPLES

MAX_HEADS = 8
"""Maximum number of tasks of a model in the page."""
MAX_CHARTS = 6
MAX_DRAWN = 400
"""Maximum number of samples of all artifacts together, unless that leaves too few of each."""
MIN_SAMPLES = 4
MAX_OUTPUTS = 40

References: TypeAlias = Mapping[tuple[str, int], Reference]


def references_of(report: Report) -> References:
    """Labels and decisions of the source model, by task and sample."""
    return {(one.head, one.sample): one for one in report.references}


def outputs_of(result: Result) -> Data:
    """Every output compared with that of the source model: titles, and rows of texts."""
    others = output_columns([result])
    rows = [[cut(cell) for cell in row] for row in output_rows(result, others)[:MAX_OUTPUTS]]
    return {"titles": [*OUTPUT_TITLES, *map(cut, others)], "rows": rows}


def samples_per_result(report: Report) -> int:
    """The number of samples that the page shows of an artifact."""
    return max(MIN_SAMPLES, min(MAX_SAMPLES, MAX_DRAWN // max(1, len(report.results))))


def tasks_of(result: Result, references: References, samples: int) -> list[Data]:
    """The findings of every task on a result, with some samples; of earlier reports, those on its flips."""
    if not result.findings and result.flips:
        return [_findings(*_of_flips(result.flips), samples)]
    return [_findings(found, references, samples) for found in result.findings[:MAX_HEADS]]


def _of_flips(flips: Sequence[Flip]) -> tuple[Findings, References]:
    changes = [
        SampleChange(sample=flip.sample, worse=True, artifact=Classes.of([flip.answer], [None]))
        for flip in flips[:MAX_SAMPLES]
    ]
    labels = {
        ("", flip.sample): Reference(sample=flip.sample, label=Classes.of([flip.label], [None]))
        for flip in flips[:MAX_SAMPLES]
    }
    return Findings(changed=len(flips), worse=len(flips), samples=tuple(changes)), labels


def _findings(found: Findings, references: References, samples: int) -> Data:
    return {
        "head": cut(found.head),
        "changed": found.changed,
        "worse": found.worse,
        "samples": [
            {
                "sample": change.sample,
                "about": _about(change.agreement, change.error, change.worse),
                "panes": panes_of(references.get((found.head, change.sample)), change.artifact),
            }
            for change in found.samples[:samples]
        ],
        "charts": [_chart(chart) for chart in found.charts[:MAX_CHARTS]],
    }


def _about(agreement: float | None, error: float | None, worse: bool | None) -> str:
    """What changed, in words."""
    parts = []
    if agreement is not None:
        parts.append(f"agreement {fraction(agreement)}")
    if error is not None:
        parts.append(f"RMS difference {error:.3g}")
    if worse is not None:
        parts.append("worse" if worse else "not worse")
    return ", ".join(parts)


def _chart(chart: Chart) -> Data:
    data = {"kind": chart.kind, "title": cut(chart.title)}
    if isinstance(chart, ByClass):
        rows = [_class_row(chart, row) for row in chart.rows[:MAX_CLASS_ROWS]]
        return data | {"counted": cut(chart.counted), "rows": rows, "count": chart.count}
    if isinstance(chart, Histogram):
        edges = [finite(edge) for edge in chart.edges[: MAX_BINS + 1]]
        before = None if chart.before is None else list(chart.before[:MAX_BINS])
        return data | {
            "x": cut(chart.x_title),
            "edges": edges,
            "before": before,
            "after": list(chart.after[:MAX_BINS]),
            "outside": chart.outside,
        }
    return data | _plot(chart)


def _plot(chart: Plot) -> Data:
    most = MAX_CURVE if chart.style == "line" else MAX_DOTS
    return {
        "style": chart.style,
        "titles": [cut(chart.x_title), cut(chart.y_title)],
        "x": [finite(value) for value in chart.x[:most]],
        "before": [None if value is None else finite(value) for value in chart.before[:most]],
        "after": [None if value is None else finite(value) for value in chart.after[:most]],
    }


def _class_row(chart: ByClass, row: ClassValue) -> list[Any]:
    texts = [
        "–" if value is None else Measurement(value=value, kind=chart.shown).text
        for value in (row.before, row.after)
    ]
    change = None if row.before is None or row.after is None else finite(row.after - row.before)
    return [row.label, row.n, *texts, change]
