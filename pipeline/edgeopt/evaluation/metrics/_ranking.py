"""Samples in the order of their scores, for metrics of all thresholds at once."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.plugin import Contributions

Floats = NDArray[np.float64]


class Worth(NamedTuple):
    """Derivatives of a metric of one label by the weights of a positive and of a negative sample."""

    positive: Floats
    """At each threshold ``[t]``."""
    negative: Floats
    shares: tuple[float, float]
    """The most by which one positive, and one negative, can change the metric."""


class Ranking(NamedTuple):
    """Samples by decreasing score, for each of several labels: arrays ``[labels, n]``.

    Sorted once, as a weighted set of samples has the same order.
    """

    order: NDArray[np.int64]
    positive: NDArray[np.bool_]
    last: NDArray[np.bool_]
    """Whether the next score is lower: only there can a threshold be."""

    @classmethod
    def of(cls, scores: Floats, positive: NDArray[np.bool_]) -> "Ranking":
        """Rank scores ``[n, labels]``. One that is not finite gets the worst place: last for a positive."""
        worst = np.where(positive, -np.inf, np.inf)
        ranked = np.where(np.isfinite(scores), scores, worst).T
        order = np.argsort(-ranked, axis=1, kind="stable")
        ranked = np.take_along_axis(ranked, order, axis=1)
        last = np.ones(ranked.shape, bool)
        last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        return cls(order, np.take_along_axis(positive.T, order, axis=1), last)

    def points(self, weights: Floats) -> Iterator[tuple[Floats, Floats]]:
        """For each label, the weights of the true and of the false positives at each threshold."""
        for order, positive, last in zip(self.order, self.positive, self.last, strict=True):
            weight = weights[order]
            yield np.cumsum(weight * positive)[last], np.cumsum(weight * ~positive)[last]

    def contributions(self, value: float, worth: Callable[[Floats, Floats], Worth | None]) -> Contributions:
        """The contributions to the mean over labels, from the ``worth`` of samples by the points of a label.

        ``worth`` returns None for a label without a value.
        """
        samples = self.order.shape[1]
        gains, shares, known = np.zeros(samples), np.zeros(samples), 0
        points = self.points(np.ones(samples))
        for order, positive, last, each in zip(self.order, self.positive, self.last, points, strict=True):
            found = worth(*each)
            if found is not None:
                threshold = np.cumsum(last) - last
                gains[order] += np.where(positive, found.positive[threshold], found.negative[threshold])
                shares[order] += np.where(positive, *found.shares)
                known += 1
        return Contributions(value + samples / known * gains, float(samples / known * shares.max()))

    def average_precisions(self, weights: Floats) -> Floats:
        """The area under precision against recall of each label ``[labels]``; NaN without positives."""
        return np.array([_area(*points) for points in self.points(weights)], np.float64)


def _area(hits: Floats, wrong: Floats) -> float:
    if hits[-1] <= 0:
        return float("nan")
    chosen = hits + wrong
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def positive_scores(scores: Floats) -> Floats:
    """One score ``[n, 1]`` of the second of two classes; NaN if one of the two is not finite."""
    whole = np.isfinite(scores).all(axis=1)
    finite = scores[whole]
    result = np.full((len(scores), 1), np.nan)
    # The difference of two logits has the same order as their softmax; probabilities need no change.
    probability = bool(((finite >= 0) & (finite <= 1)).all())
    result[whole, 0] = finite[:, 1] if probability else finite[:, 1] - finite[:, 0]
    return result
