"""From outputs to measurements. Pure: the same outputs give the same measurements."""

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
"""Number of samples below which the accuracy of a class is meaningless."""
FLIPS = 50
"""Maximum number of lost samples in a report."""
CLASSES = 200
"""Maximum number of classes in a report; twice as many confusions."""


def measurement(metric: Metric, score: Score, role: Role = "quality") -> Measurement:
    """A score of a metric, or its drop, with the confidence interval of its per-sample values.

    Raises:
        UsageError: the score is not a finite number.
    """
    per_sample = score.per_sample
    if not math.isfinite(score.value):
        raise UsageError(
            f"it returned {score.value}, which is not a finite number", fix="fix the metric or its data"
        )
    return Measurement(
        value=score.value,
        unit=metric.unit,
        n=None if per_sample is None else len(per_sample),
        ci95=None if per_sample is None else bootstrap(per_sample),
        kind=metric.kind if role in ("quality", "fidelity") else metric.difference_kind,
        role=role,
    )


def sample_measurements(
    metrics: Sequence[NamedMetric], pairs: Mapping[str, Paired], labels: Array | None
) -> dict[str, Measurement]:
    """Measurements from per-sample values: the worst class drop, and the smallest detectable drop."""
    measurements: dict[str, Measurement] = {}
    for name, metric in metrics:
        pair = pairs.get(name)
        if pair is None:
            continue
        count, kind = len(pair.before), metric.difference_kind
        smallest = detectable_drop(pair)
        if count > 1 and math.isfinite(smallest):
            measurements[f"{name}_detectable_drop"] = Measurement(
                value=smallest, n=count, kind=kind, role="detectable_drop"
            )
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "biu":
            continue
        classes, counts = np.unique(labels, return_counts=True)
        classes = classes[counts >= FEW]
        if len(classes) > 1:
            worst = max(float(pair.drops[labels == label].mean()) for label in classes)
            measurements[f"{name}_worst_class_drop"] = Measurement(
                value=worst, n=count, kind=kind, role="worst_class_drop"
            )
    return measurements


def flips(outputs: Array, labels: Array | None, source: Array) -> tuple[Flip, ...]:
    """The samples correct in the source model and wrong here, by decreasing margin."""
    both = _both_scores(outputs, labels, source)
    if both is None or labels is None:
        return ()
    scores, before = both
    predicted = scores.argmax(axis=1)
    lost = np.flatnonzero((before.argmax(axis=1) == labels) & (predicted != labels))
    margins = scores[lost, predicted[lost]] - scores[lost, labels[lost]]
    order = np.argsort(-margins, kind="stable")[:FLIPS]
    return tuple(
        Flip(
            sample=int(lost[index]),
            label=int(labels[lost[index]]),
            answer=int(predicted[lost[index]]),
            margin=float(margins[index]),
        )
        for index in order
    )


def by_class(
    outputs: Array, labels: Array | None, source: Array
) -> tuple[tuple[ClassChange, ...], tuple[Confusion, ...]]:
    """Correct predictions per class, and confusions, of the source model and of this one.

    The largest changes come first; the number of entries is bounded.
    """
    both = _both_scores(outputs, labels, source)
    if both is None or labels is None:
        return (), ()
    after, before = (scores.argmax(axis=1) for scores in both)
    classes, counts = np.unique(labels, return_counts=True)
    correct_before = [(before == labels)[labels == label].sum() for label in classes]
    correct_after = [(after == labels)[labels == label].sum() for label in classes]
    changes = [
        ClassChange(label=int(label), n=int(n), before=int(old), after=int(new))
        for label, n, old, new in zip(classes, counts, correct_before, correct_after, strict=True)
    ]
    mistakes: dict[tuple[int, int], list[int]] = {}
    for which, predicted in enumerate((before, after)):
        wrong = predicted != labels
        for label, answer in zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True):
            mistakes.setdefault((int(label), answer), [0, 0])[which] += 1
    confusions = [
        Confusion(label=label, answer=answer, before=old, after=new)
        for (label, answer), (old, new) in mistakes.items()
    ]
    changes.sort(key=lambda change: (change.after - change.before, change.label))
    confusions.sort(key=lambda one: (-abs(one.after - one.before), -one.after, one.label, one.answer))
    return tuple(changes[:CLASSES]), tuple(confusions[: 2 * CLASSES])


def _both_scores(outputs: Array, labels: Array | None, source: Array) -> tuple[Array, Array] | None:
    """Scores ``[n, classes]`` of this model and of the source; None unless this is a classification."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "biu":
        return None
    scores, before = class_scores(outputs), class_scores(source)
    if scores.ndim != 2 or scores.shape != before.shape or labels.max(initial=0) >= scores.shape[1]:
        return None
    return scores, before
