"""Page data on the samples, classes, layers and bytes of an artifact."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeopt.reports.plain import printable
from edgeopt.reports.thumbnails import PREFIX
from edgeopt.results import Breakdown, Result, Trial

MAX_NAME = 200
"""Maximum length of a name in the page; report.json is complete. The constants below limit other parts."""
MAX_FLIPS = 40
MAX_FREQUENT = 8
MAX_CLASS_ROWS = 40
MAX_CONFUSIONS = 120
MAX_PARTS = 20
MAX_LAYERS = 24
MAX_SENSITIVITY = 40
MAX_CLASSES = 1000
MAX_CLASS_NAME = 40

Data = dict[str, Any]


def cut(text: str, limit: int = MAX_NAME) -> str:
    """Remove control characters from a text and limit its length."""
    clean = printable(text)
    return clean if len(clean) <= limit else f"{clean[:limit]}… ({len(clean):,} characters)"


def finite(value: float) -> float | None:
    """The value, or None if it is not finite: JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def lost(result: Result) -> Data | None:
    """Samples correct in the source model and wrong here, and the most frequent confusions among them."""
    if not result.flips:
        return None
    rows = [[flip.sample, flip.label, flip.answer, f"{flip.margin:.3g}"] for flip in result.flips[:MAX_FLIPS]]
    confused = Counter((flip.label, flip.answer) for flip in result.flips)
    frequent = [[*pair, count] for pair, count in confused.most_common(MAX_FREQUENT) if count > 1]
    return {"rows": rows, "frequent": frequent, "count": len(result.flips)}


def classes(result: Result) -> Data | None:
    """Correct predictions per class (label, samples, before, after), largest loss first."""
    if not result.classes:
        return None
    rows = [[one.label, one.n, one.before, one.after] for one in result.classes[:MAX_CLASS_ROWS]]
    return {"rows": rows, "count": len(result.classes)}


def confusions(result: Result) -> Data:
    """Confusions: label, predicted class, count before and after."""
    rows = [[one.label, one.answer, one.before, one.after] for one in result.confusions[:MAX_CONFUSIONS]]
    return {"rows": rows, "count": len(result.confusions)}


def bytes_of(breakdown: Breakdown) -> Data:
    """The bytes of a file by part and by operator."""
    parts = sorted(breakdown.parts.items(), key=lambda part: -part[1])
    rest = sum(size for _, size in parts[MAX_PARTS:])
    shown = [[cut(name), size] for name, size in parts[:MAX_PARTS]]
    layers = breakdown.layers[:MAX_LAYERS]
    return {
        "parts": [*shown, ["other", rest]] if rest else shown,
        "layers": [[cut(each.name), cut(each.kind), each.size_bytes, each.macs] for each in layers],
        "count": len(breakdown.layers),
    }


def sensitivity(trials: Iterable[Trial]) -> list[list[Any]]:
    """Sensitivity of the layers: the fraction of the error removed by raising each alone, and its bytes."""
    all_trials = list(trials)
    base = next((one for one in all_trials if not one.raised and one.snr_db is not None), None)
    if base is None or base.snr_db is None:
        return []
    rows: list[tuple[str, float, int]] = []
    for trial in all_trials:
        if trial.status == "alone" and len(trial.raised) == 1 and trial.snr_db is not None:
            removed = 1 - 10 ** ((base.snr_db - trial.snr_db) / 10)
            rows.append((cut(trial.raised[0]), removed, trial.size_bytes - base.size_bytes))
    return [list(row) for row in sorted(rows, key=lambda row: -row[1])[:MAX_SENSITIVITY]]


def class_names(labels: Sequence[str]) -> list[str]:
    """The class names, limited in number and length."""
    return [cut(name, MAX_CLASS_NAME) for name in labels[:MAX_CLASSES]]


def pictures(thumbnails: Mapping[int, str]) -> dict[str, str]:
    """Thumbnails of samples, without values that are not PNG data URIs: a report may be untrusted."""
    return {str(sample): uri for sample, uri in thumbnails.items() if uri.startswith(PREFIX)}
