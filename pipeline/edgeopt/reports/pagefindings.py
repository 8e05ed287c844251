"""What single samples, classes, layers and bytes tell of an artifact, as the page shows it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeopt.reports.plain import printable
from edgeopt.reports.thumbnails import PREFIX
from edgeopt.results import Breakdown, Report, Result, Trial

NAME = 200
"""Characters shown of a name; report.json has all of it. So for the following."""
FLIPS = 40
OFTEN = 8
CLASSES = 40
CONFUSIONS = 120
PARTS = 20
WEIGHTED = 24
SENSITIVE = 40
LABELS = 1000
CLASS_NAME = 40

Data = dict[str, Any]


def cut(text: str, longest: int = NAME) -> str:
    """Text without control characters, and not so long that it hides the rest of the page."""
    told = printable(text)
    return told if len(told) <= longest else f"{told[:longest]}… ({len(told):,} characters)"


def finite(value: float) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def lost(result: Result) -> Data | None:
    """Samples that the source model has right and this artifact wrong, and what they are taken for."""
    if not result.flips:
        return None
    rows = [[flip.sample, flip.label, flip.answer, f"{flip.margin:.3g}"] for flip in result.flips[:FLIPS]]
    confused = Counter((flip.label, flip.answer) for flip in result.flips)
    often = [[*pair, count] for pair, count in confused.most_common(OFTEN) if count > 1]
    return {"rows": rows, "often": often, "count": len(result.flips)}


def classes(result: Result) -> Data | None:
    """Right answers per class: label, samples, before, after; the largest loss first."""
    if not result.classes:
        return None
    rows = [[one.label, one.n, one.before, one.after] for one in result.classes[:CLASSES]]
    return {"rows": rows, "count": len(result.classes)}


def confusions(result: Result) -> Data:
    """Label, answer, and how often the one was taken for the other before and after."""
    rows = [[one.label, one.answer, one.before, one.after] for one in result.confusions[:CONFUSIONS]]
    return {"rows": rows, "count": len(result.confusions)}


def files(report: Report) -> list[Data]:
    """Where the bytes of every file go, once: it is the same file on every device."""
    found: dict[tuple[str, str], Breakdown] = {}
    for row in report.results:
        if row.artifact is not None and row.artifact.breakdown is not None:
            found.setdefault((row.variant, row.format), row.artifact.breakdown)
    return [
        {"variant": cut(variant), "format": cut(form), **_bytes(breakdown)}
        for (variant, form), breakdown in found.items()
    ]


def _bytes(breakdown: Breakdown) -> Data:
    parts = sorted(breakdown.parts.items(), key=lambda part: -part[1])
    rest = sum(size for _, size in parts[PARTS:])
    shown = [[cut(name), size] for name, size in parts[:PARTS]]
    layers = breakdown.layers[:WEIGHTED]
    return {
        "parts": [*shown, ["everything else", rest]] if rest else shown,
        "layers": [[cut(each.name), cut(each.kind), each.size_bytes, each.macs] for each in layers],
        "count": len(breakdown.layers),
    }


def sensitivity(trials: Iterable[Trial]) -> list[list[Any]]:
    """Layers with the share of the error that goes when each alone is raised, and the bytes it costs."""
    known = list(trials)
    base = next((one for one in known if not one.raised and one.snr_db is not None), None)
    if base is None or base.snr_db is None:
        return []
    rows: list[tuple[str, float, int]] = []
    for trial in known:
        if trial.status == "alone" and len(trial.raised) == 1 and trial.snr_db is not None:
            removed = 1 - 10 ** ((base.snr_db - trial.snr_db) / 10)
            rows.append((cut(trial.raised[0]), removed, trial.size_bytes - base.size_bytes))
    return [list(row) for row in sorted(rows, key=lambda row: -row[1])[:SENSITIVE]]


def class_names(labels: Sequence[str]) -> list[str]:
    """The classes' names, as far as a page has room for them."""
    return [cut(name, CLASS_NAME) for name in labels[:LABELS]]


def pictures(thumbnails: Mapping[int, str]) -> dict[str, str]:
    """Pictures of samples. What is none is left out: a report may come from anywhere."""
    return {str(sample): uri for sample, uri in thumbnails.items() if uri.startswith(PREFIX)}
