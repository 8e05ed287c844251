"""From outputs and times to measurements. Pure: same outcomes, same numbers."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.evaluation.class_scores import class_scores
from edgeopt.evaluation.statistics import Paired, bootstrap, detectable_drop
from edgeopt.model import Array
from edgeopt.plugin import Metric, NamedMetric, Score
from edgeopt.results import ClassChange, Confusion, Flip, Measurement, Role

FEW = 5
"""Samples below which a class says nothing about itself."""
FLIPS = 50
"""Lost samples that are listed."""
CLASSES = 200
"""Classes that are listed, and as many times two of them that are taken for each other."""


def measurement(metric: Metric, score: Score, role: Role = "quality") -> Measurement:
    """A score, or a drop, of a metric with the interval that its per-sample values give.

    Raises:
        UsageError: it is not a finite number.
    """
    per_sample = score.per_sample
    if not math.isfinite(score.value):
        raise UsageError(f"it gave {score.value}, which is not a number", fix="fix the metric or its data")
    return Measurement(
        value=score.value,
        unit=metric.unit,
        n=None if per_sample is None else len(per_sample),
        ci95=None if per_sample is None else bootstrap(per_sample),
        kind=metric.kind if role in ("quality", "fidelity") else metric.difference_kind,
        role=role,
    )


def of_the_samples(
    metrics: Sequence[NamedMetric], pairs: Mapping[str, Paired], labels: Array | None
) -> dict[str, Measurement]:
    """What only single samples tell: the drop of the worst class, and the smallest that could be seen."""
    found: dict[str, Measurement] = {}
    for name, metric in metrics:
        pair = pairs.get(name)
        if pair is None:
            continue
        count, kind = len(pair.before), metric.difference_kind
        if count > 1:
            found[f"{name}_detectable_drop"] = Measurement(
                value=detectable_drop(pair), n=count, kind=kind, role="detectable_drop"
            )
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "biu":
            continue
        classes, counts = np.unique(labels, return_counts=True)
        classes = classes[counts >= FEW]
        if len(classes) > 1:
            worst = max(float(pair.drops[labels == label].mean()) for label in classes)
            found[f"{name}_worst_class_drop"] = Measurement(
                value=worst, n=count, kind=kind, role="worst_class_drop"
            )
    return found


def flips(outputs: Array, labels: Array | None, source: Array) -> tuple[Flip, ...]:
    """The samples that the source model classifies rightly and this one does not, most certain first."""
    both = _both_scores(outputs, labels, source)
    if both is None or labels is None:
        return ()
    scores, before = both
    answers = scores.argmax(axis=1)
    lost = np.flatnonzero((before.argmax(axis=1) == labels) & (answers != labels))
    margins = scores[lost, answers[lost]] - scores[lost, labels[lost]]
    order = np.argsort(-margins, kind="stable")[:FLIPS]
    return tuple(
        Flip(
            sample=int(lost[index]),
            label=int(labels[lost[index]]),
            answer=int(answers[lost[index]]),
            margin=float(margins[index]),
        )
        for index in order
    )


def by_class(
    outputs: Array, labels: Array | None, source: Array
) -> tuple[tuple[ClassChange, ...], tuple[Confusion, ...]]:
    """Right answers per class, and classes taken for another, by the source model and by this one.

    Those that changed most come first; what is listed is bounded.
    """
    both = _both_scores(outputs, labels, source)
    if both is None or labels is None:
        return (), ()
    after, before = (scores.argmax(axis=1) for scores in both)
    seen, counts = np.unique(labels, return_counts=True)
    right = [(before == labels)[labels == label].sum() for label in seen]
    still = [(after == labels)[labels == label].sum() for label in seen]
    changes = [
        ClassChange(label=int(label), n=int(n), before=int(old), after=int(new))
        for label, n, old, new in zip(seen, counts, right, still, strict=True)
    ]
    mistaken: dict[tuple[int, int], list[int]] = {}
    for which, answers in enumerate((before, after)):
        wrong = answers != labels
        for label, answer in zip(labels[wrong].tolist(), answers[wrong].tolist(), strict=True):
            mistaken.setdefault((int(label), answer), [0, 0])[which] += 1
    confusions = [
        Confusion(label=label, answer=answer, before=old, after=new)
        for (label, answer), (old, new) in mistaken.items()
    ]
    changes.sort(key=lambda change: (change.after - change.before, change.label))
    confusions.sort(key=lambda one: (-abs(one.after - one.before), -one.after, one.label, one.answer))
    return tuple(changes[:CLASSES]), tuple(confusions[: 2 * CLASSES])


def _both_scores(outputs: Array, labels: Array | None, source: Array) -> tuple[Array, Array] | None:
    """Scores ``[n, classes]`` of this model and of the source; None where this is no classification."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "biu":
        return None
    scores, before = class_scores(outputs), class_scores(source)
    if scores.ndim != 2 or scores.shape != before.shape or labels.max(initial=0) >= scores.shape[1]:
        return None
    return scores, before
