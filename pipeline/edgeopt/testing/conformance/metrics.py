"""Contract of metrics: they distinguish good from bad outputs, independently of the sample order."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeoptError
from edgeopt.plugin import Metric, Score
from edgeopt.testing.conformance.options import check_options, demand, instance_of
from edgeopt.testing.workshop import Workshop

COUNT = 60
RESAMPLES = 100
EXPLAINED = 0.7
"""Least correlation of a metric of resampled sets with the mean of the contributions: few samples, so many
metrics are far from linear."""
UNSUPPORTED = (EdgeoptError, ValueError, TypeError, IndexError, AttributeError, KeyError)
"""What a metric may raise for outputs or targets that are not of its kind."""


class Situation(NamedTuple):
    """What a metric may read of a model that is right, of one that is wrong, and the labels."""

    task: str
    """Its task; empty for the agreement of decisions with those of the source model."""
    right: Any
    wrong: Any
    target: Any


def check_metric(metric: Metric | type[Metric], workshop: Workshop) -> None:
    """Check that scores distinguish good from bad outputs.

    They must also be independent of the sample order, and agree with the per-sample values or the evidence.

    Raises:
        Nonconformance: the metric violates the contract.
    """
    instance = instance_of(metric)
    check_options(instance)
    name = type(instance).__name__
    order = np.random.default_rng(1).permutation(COUNT)
    distinguished = 0
    for task, right, wrong, target in _situations():
        if (instance.reads == "decisions") != (task == "") or (instance.tasks and task not in instance.tasks):
            continue
        if isinstance(right, list) and instance.against == "source":
            continue
        if instance.against == "source" and target is not None and np.shape(target) != np.shape(right):
            continue
        try:
            good, bad = instance.score(right, target), instance.score(wrong, target)
        except UNSUPPORTED:
            continue
        gain = good.value - bad.value if instance.higher_is_better else bad.value - good.value
        demand(gain >= 0, f"{name}: correct outputs score {good.value:g}, wrong ones {bad.value:g}")
        distinguished += gain > 0
        shuffled = instance.score(_taken(right, order), _taken(target, order))
        demand(
            bool(np.isclose(shuffled.value, good.value, rtol=1e-9)),
            f"{name} depends on the order of the samples: {good.value:g}, {shuffled.value:g}",
        )
        demand(
            bad.per_sample is None or not instance.of_set,
            f"{name} has values per sample, but is declared as a metric of the whole set",
        )
        if bad.per_sample is not None:
            mean = float(np.mean(bad.per_sample))
            demand(len(bad.per_sample) == COUNT, f"{name} does not return one value per sample")
            demand(
                bool(np.isclose(mean, bad.value, rtol=1e-6)),
                f"{name} is {bad.value:g}, but the mean of its per-sample values is {mean:g}",
            )
        elif bad.evidence is not None:
            again = instance.weighted(bad.evidence, np.ones(COUNT))
            demand(
                bool(np.isclose(again, bad.value, rtol=1e-9)),
                f"{name} is {bad.value:g}, but {again:g} from its evidence",
            )
            _check_contributions(instance, bad)
    demand(
        distinguished > 0,
        f"{name} distinguishes correct from wrong outputs for no type of target",
    )


def _check_contributions(metric: Metric, score: Score) -> None:
    """Their mean is the value, and they explain how it varies among resampled sets."""
    name, values = type(metric).__name__, metric.contributions(score.evidence, COUNT).values
    demand(
        values.shape == (COUNT,) and bool(np.isfinite(values).all()),
        f"{name} does not return one finite contribution per sample",
    )
    demand(
        bool(np.isclose(values.mean(), score.value, rtol=1e-6, atol=1e-12)),
        f"{name} is {score.value:g}, but the mean of its contributions is {values.mean():g}",
    )
    shares = np.full(COUNT, 1 / COUNT)
    sets = np.random.default_rng(2).multinomial(COUNT, shares, RESAMPLES).astype(np.float64)
    real = np.array([metric.weighted(score.evidence, weights) for weights in sets])
    defined = np.isfinite(real)
    real, linear = real[defined], (sets @ values / COUNT)[defined]
    if len(real) > RESAMPLES // 2 and real.std() > 1e-9 * abs(score.value):
        explained = float(np.corrcoef(real, linear)[0, 1]) if linear.std() > 0 else 0.0
        demand(
            explained >= EXPLAINED,
            f"{name}: the contributions do not explain its values for resampled sets "
            f"(correlation {explained:.2f})",
        )


def _situations() -> Iterator[Situation]:
    rng = np.random.default_rng(0)
    scores = rng.random((COUNT, 10)).astype(np.float32)
    single = scores[:, :1]
    classes = scores.argmax(axis=1)
    yield Situation("classification", scores, _turned(scores), classes)
    yield Situation("regression", scores, _turned(scores), scores.copy())
    yield Situation("classification", single, _turned(single), (single[:, 0] > 0.5).astype(np.int64))
    two = np.concatenate([1 - single, single], axis=1)
    yield Situation("classification", two, _turned(two), (single[:, 0] > 0.5).astype(np.int64))
    flags = (scores[:, :4] > 0.5).astype(np.int64)
    yield Situation("multilabel", scores[:, :4], _turned(scores[:, :4]), flags)
    yield Situation("multilabel", flags, _turned(flags), flags)
    yield Situation("classification", classes, _turned(classes), classes)
    # Maps of classes, images and keypoints.
    maps = rng.integers(0, 3, (COUNT, 8, 8))
    yield Situation("segmentation", maps, _turned(maps), maps)
    images = rng.random((COUNT, 16, 16, 1))
    yield Situation("regression", images, _turned(images), images.copy())
    points = rng.uniform(0, 100, (COUNT, 4, 2))
    yield Situation("regression", points, _turned(points), points.copy())
    # Boxes: x1, y1, x2, y2, score or class, class or 0.
    corners = rng.uniform(0, 50, (COUNT, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 20, (COUNT, 3, 2))], axis=2)
    kinds, certain = rng.integers(0, 2, (COUNT, 3, 1)), rng.uniform(0.1, 1, (COUNT, 3, 1))
    found = list(np.concatenate([boxes, certain, kinds], axis=2))
    yield Situation("detection", found, found[::-1], list(np.concatenate([boxes, kinds, 0 * kinds], axis=2)))
    # Sequences of tokens, scores of every step, and vectors of things that occur several times.
    tokens = [rng.integers(1, 9, size) for size in rng.integers(2, 7, COUNT)]
    yield Situation("sequence", tokens, tokens[::-1], tokens)
    steps = rng.normal(0, 3, (COUNT, 5, 8))
    yield Situation("sequence", steps, _turned(steps), steps.argmax(axis=2))
    yield Situation("sequence", steps.argmax(axis=2), _turned(steps).argmax(axis=2), steps.argmax(axis=2))
    things = np.arange(COUNT) % 12
    vectors = np.eye(12)[things] + rng.normal(0, 0.05, (COUNT, 12))
    yield Situation("embedding", vectors, rng.normal(0, 1, vectors.shape), things)
    # How far decisions agree with those of the source model, which the task has computed.
    yield Situation("", np.ones(COUNT), np.zeros(COUNT), None)


def _turned(values: NDArray[Any]) -> NDArray[Any]:
    """The values of other samples."""
    return values[::-1].copy()


def _taken(values: Any, order: NDArray[np.int64]) -> Any:
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[order]
    rows: Sequence[Any] = values
    return [rows[index] for index in order]
