"""From outputs and times to measurements. Pure: same outcomes, same numbers."""

import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.class_scores import class_scores
from edgeopt.evaluation.statistics import Paired, bootstrap, detectable_drop, quantile_interval
from edgeopt.model import Array
from edgeopt.plugin import Metric, Score
from edgeopt.results import SPARSE, ClassChange, Confusion, Flip, Measurement

Metrics: TypeAlias = Sequence[tuple[str, Metric]]

BUSY_CORES = 0.25
"""Time that other programs took while latency was measured, in cores: more than a quiet system needs."""
SLOWER_CLOCK = 0.9
FASTER = 0.95
FEW = 5
"""Samples below which a class says nothing about itself."""
FLIPS = 50
"""Lost samples that are listed."""
CLASSES = 200
"""Classes that are listed, and as many times two of them that are taken for each other."""


def measurement(score: Score, unit: str) -> Measurement:
    """A score with the interval that its per-sample values give."""
    per_sample = score.per_sample
    if not math.isfinite(score.value):
        raise UsageError(
            f"a metric gave {score.value}, which is not a number", fix="mend the metric, or its data"
        )
    return Measurement(
        value=score.value,
        unit=unit,
        n=None if per_sample is None else len(per_sample),
        ci95=None if per_sample is None else bootstrap(per_sample),
    )


def accuracy(
    metrics: Metrics, outputs: Array, labels: Array | None, source: Array
) -> tuple[dict[str, Measurement], dict[str, Paired]]:
    """Every metric of one model's outputs and, against labels, its paired drop from the source's.

    Beside the measurements it gives the values per sample behind each drop, higher being better.

    Raises:
        UsageError: labels that do not fit the outputs.
    """
    found: dict[str, Measurement] = {}
    pairs: dict[str, Paired] = {}
    for name, metric in metrics:
        if metric.against == "source":
            found[name] = measurement(metric.score(outputs, source), metric.unit)
            continue
        if labels is None:
            continue
        here, there = metric.score(outputs, labels), metric.score(source, labels)
        found[name] = measurement(here, metric.unit)
        sign = 1.0 if metric.higher_is_better else -1.0
        drops = None
        if here.per_sample is not None and there.per_sample is not None:
            pairs[name] = Paired(sign * there.per_sample, sign * here.per_sample)
            drops = pairs[name].drops
        found[f"{name}_drop"] = measurement(Score(sign * (there.value - here.value), drops), metric.unit)
    return found, pairs


def of_the_samples(pairs: Mapping[str, Paired], labels: Array | None) -> dict[str, Measurement]:
    """What only single samples tell: the drop of the worst class, and the smallest that could be seen."""
    found: dict[str, Measurement] = {}
    for name, pair in pairs.items():
        if len(pair.before) > 1:
            found[f"{name}_detectable_drop"] = Measurement(value=detectable_drop(pair), n=len(pair.before))
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "biu":
            continue
        classes, counts = np.unique(labels, return_counts=True)
        classes = classes[counts >= FEW]
        if len(classes) > 1:
            worst = max(float(pair.drops[labels == label].mean()) for label in classes)
            found[f"{name}_worst_class_drop"] = Measurement(value=worst, n=len(pair.before))
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


def latency(info: Mapping[str, Any], times: Mapping[str, NDArray[np.float64]]) -> dict[str, Measurement]:
    """Percentiles and ends in ms of one artifact, and its ratio to the interleaved float artifact."""
    seconds = times.get("latency", np.empty(0))
    found: dict[str, Measurement] = {}
    if len(seconds):
        for percent in (50, 90, 99):
            found[f"latency_p{percent}_ms"] = Measurement(
                value=float(np.percentile(seconds, percent)) * 1e3,
                unit="ms",
                n=len(seconds),
                ci95=quantile_interval(seconds * 1e3, percent / 100),
            )
        for name, end in (("min", seconds.min()), ("max", seconds.max())):
            found[f"latency_{name}_ms"] = Measurement(value=float(end) * 1e3, unit="ms", n=len(seconds))
    repeats = times.get("repeats", np.empty(0))
    if len(repeats) > 1:
        means = [part.mean() for part in np.split(seconds, np.cumsum(repeats.astype(int))[:-1])]
        found["latency_median_ms"] = Measurement(value=float(np.median(means)) * 1e3, unit="ms", n=len(means))
    base = times.get("baseline", np.empty(0))
    if len(seconds) and len(base):
        pairs = min(len(seconds), len(base))
        ratios = seconds[:pairs] / base[:pairs]
        found["latency_ratio"] = Measurement(
            value=float(np.median(ratios)),
            n=pairs,
            ci95=quantile_interval(ratios, 0.5),
        )
    if info.get("load_seconds") is not None:
        found["load_ms"] = Measurement(value=info["load_seconds"] * 1e3, unit="ms", n=1)
    for name, told in (info.get("measurements") or {}).items():
        found[name] = Measurement(value=float(told["value"]), unit=str(told.get("unit", "")))
    if info.get("peak_memory_bytes") is not None:
        found["peak_memory_bytes"] = Measurement(value=float(info["peak_memory_bytes"]), unit="bytes", n=1)
    return found


def conditions(info: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be known of the machine beside a latency: that it was busy, throttled or lost its clock."""
    spells = info.get("conditions") or []
    others = max((spell.get("other_cores") or 0.0 for spell in spells), default=0.0)
    stolen = max((spell.get("stolen_cores") or 0.0 for spell in spells), default=0.0)
    notes = []
    if others > BUSY_CORES:
        cores = max(spell.get("cores") or 0 for spell in spells)
        of_all = f" of its {cores}" if cores else ""
        notes.append(
            f"the machine was busy: other programs took {others:.1f}{of_all} cores while latency was measured"
        )
    if stolen > BUSY_CORES:
        notes.append(f"the machine was busy: its host withheld {stolen:.1f} cores while latency was measured")
    for spell in spells:
        before, after = spell["before"], spell["after"]
        first, last = before.get("frequency_mhz"), after.get("frequency_mhz")
        if before.get("throttled") or after.get("throttled"):
            notes.append("the machine was throttled: it says so itself")
        elif first and last and last < SLOWER_CLOCK * first:
            notes.append(
                f"the machine was throttled: its clock fell from {first:g} to {last:g} MHz "
                "while latency was measured"
            )
        for index, (first_gpu, last_gpu) in enumerate(
            zip(before.get("gpus") or (), after.get("gpus") or (), strict=False)
        ):
            first, last = first_gpu.get("clock_mhz"), last_gpu.get("clock_mhz")
            if first and last:
                fell = ": it was throttled, or idle meanwhile" if last < SLOWER_CLOCK * first else ""
                notes.append(f"GPU {index}: clock {first:g} MHz before and {last:g} MHz after the runs{fell}")
    return tuple(dict.fromkeys(notes))


def sparse(values: Mapping[str, Measurement]) -> tuple[str, ...]:
    """What zeros among the weights are good for, as it was measured: most runtimes multiply by them."""
    zeros, ratio = values.get("sparsity"), values.get("latency_ratio")
    if zeros is None or zeros.value < SPARSE:
        return ()
    told = f"{zeros.value:.0%} of the weights are zero"
    if ratio is not None and ratio.value < FASTER:
        return (f"{told}; latency is {ratio.value:.2f} of the float artifact's",)
    return (f"{told}: that shrinks the download only, when it is compressed (gzip_bytes), not the latency",)


def of_the_device(values: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """An emulated device's measurements, without those that would tell of the machine it is emulated on."""
    return {name: value for name, value in values.items() if name not in ("load_ms", "peak_memory_bytes")}


def sizes(path: Path) -> dict[str, Measurement]:
    """Bytes of an artifact as it is, and as a download compresses it."""
    data = path.read_bytes()
    return {
        "size_bytes": Measurement(value=len(data), unit="bytes"),
        "gzip_bytes": Measurement(value=len(gzip.compress(data, 9, mtime=0)), unit="bytes"),
    }
