"""From outputs to measurements. Pure: the same outputs give the same measurements."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.confidence.intervals import bootstrap, interval
from edgeopt.evaluation.confidence.paired import Paired
from edgeopt.evaluation.confidence.sample_sizes import detectable_drop
from edgeopt.evaluation.interpreter import labels_of
from edgeopt.model import Array
from edgeopt.plugin import Decisions, Labels, Metric, NamedMetric, PerSample, Score
from edgeopt.results import ClassChange, Confusion, Flip, Measurement, Role

FEW = 5
"""Number of samples below which the accuracy of a class is meaningless."""
FLIPS = 50
"""Maximum number of lost samples in a report."""
DEFINED = 0.9
"""Fraction of resampled sets for which a metric must be defined."""
CLASSES = 200
"""Maximum number of classes in a report; twice as many confusions."""


def measurement(
    metric: Metric,
    score: Score,
    role: Role = "quality",
    resamples: NDArray[np.float64] | None = None,
    samples: int | None = None,
) -> Measurement:
    """A score of a metric, or its drop, with the confidence interval of its per-sample values.

    For a metric without values per sample, ``resamples`` are its values for resampled sets, and ``samples``
    is the number of samples.

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
        n=samples if per_sample is None else len(per_sample),
        ci95=_interval(per_sample, resamples),
        kind=metric.kind if role in ("quality", "fidelity") else metric.difference_kind,
        role=role,
    )


def _interval(
    per_sample: NDArray[np.float64] | None, resamples: NDArray[np.float64] | None
) -> tuple[float, float] | None:
    if per_sample is not None:
        return bootstrap(per_sample)
    if resamples is None:
        return None
    # A resampled set may have nothing to judge, such as no object; a few of these do not matter.
    defined = resamples[np.isfinite(resamples)]
    return interval(defined) if len(defined) >= DEFINED * len(resamples) else None


def sample_measurements(
    metrics: Sequence[NamedMetric], pairs: Mapping[str, Paired], all_labels: Labels | None
) -> dict[str, Measurement]:
    """Measurements from per-sample values: the worst class drop, and the smallest detectable drop."""
    measurements: dict[str, Measurement] = {}
    for name, metric, head in metrics:
        pair, labels = pairs.get(name), labels_of(all_labels, head)
        if pair is None:
            continue
        count, kind = len(pair.before), metric.difference_kind
        smallest = detectable_drop(pair)
        if count > 1 and math.isfinite(smallest):
            measurements[f"{name}_detectable_drop"] = Measurement(
                value=smallest, n=count, kind=kind, role="detectable_drop"
            )
        if pair.of_set or not are_classes(labels):
            continue
        classes, counts = np.unique(labels, return_counts=True)
        classes = classes[counts >= FEW]
        if len(classes) > 1:
            worst = max(float(pair.drops[labels == label].mean()) for label in classes)
            measurements[f"{name}_worst_class_drop"] = Measurement(
                value=worst, n=count, kind=kind, role="worst_class_drop"
            )
    return measurements


def are_classes(labels: PerSample | None) -> TypeGuard[Array]:
    """Whether labels are one class index per sample."""
    return isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "biu"


def flips(decisions: Decisions, labels: PerSample | None, source: Decisions) -> tuple[Flip, ...]:
    """The samples correct in the source model and wrong here, by decreasing margin."""
    chosen = _chosen_classes(decisions, labels, source)
    if chosen is None or decisions.scores is None or not are_classes(labels):
        return ()
    predicted, before = chosen
    scores = np.asarray(decisions.scores, np.float64)
    lost = np.flatnonzero((before == labels) & (predicted != labels) & (predicted >= 0))
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
    decisions: Decisions, labels: PerSample | None, source: Decisions
) -> tuple[tuple[ClassChange, ...], tuple[Confusion, ...]]:
    """Correct predictions per class, and confusions, of the source model and of this one.

    The largest changes come first; the number of entries is bounded.
    """
    chosen = _chosen_classes(decisions, labels, source)
    if chosen is None or not are_classes(labels):
        return (), ()
    after, before = chosen
    classes, counts = np.unique(labels, return_counts=True)
    correct_before = [(before == labels)[labels == label].sum() for label in classes]
    correct_after = [(after == labels)[labels == label].sum() for label in classes]
    changes = [
        ClassChange(label=int(label), n=int(n), before=int(old), after=int(new))
        for label, n, old, new in zip(classes, counts, correct_before, correct_after, strict=True)
    ]
    mistakes: dict[tuple[int, int], list[int]] = {}
    for which, predicted in enumerate((before, after)):
        wrong = (predicted != labels) & (predicted >= 0)
        for label, answer in zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True):
            mistakes.setdefault((int(label), answer), [0, 0])[which] += 1
    confusions = [
        Confusion(label=label, answer=answer, before=old, after=new)
        for (label, answer), (old, new) in mistakes.items()
    ]
    changes.sort(key=lambda change: (change.after - change.before, change.label))
    confusions.sort(key=lambda one: (-abs(one.after - one.before), -one.after, one.label, one.answer))
    return tuple(changes[:CLASSES]), tuple(confusions[: 2 * CLASSES])


def _chosen_classes(
    decisions: Decisions, labels: PerSample | None, source: Decisions
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The class ``[n]`` that this model and the source chose; None unless both choose one of the labels'."""
    if not are_classes(labels) or decisions.scores is None or source.scores is None:
        return None
    predicted, before = (np.asarray(each.values) for each in (decisions, source))
    classes = decisions.scores.shape[-1]
    if predicted.shape != labels.shape or before.shape != labels.shape or predicted.dtype.kind not in "iu":
        return None
    if decisions.scores.shape != (len(labels), classes) or labels.max(initial=0) >= classes:
        return None
    return predicted.astype(np.int64), before.astype(np.int64)
