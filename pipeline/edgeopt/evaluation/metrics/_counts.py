"""What metrics of the whole set are computed from: counts of each sample."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array
from edgeopt.plugin import Contributions

Floats = NDArray[np.float64]


class Counts(NamedTuple):
    """True positives, false positives and false negatives of each sample and class.

    Sparse, as a sample has few of many classes: one entry per nonzero count, or several to be added.
    """

    sample: NDArray[np.int64]
    cell: NDArray[np.int64]
    """``3 * class + part``, where the part is 0 for true and 1 for false positives, 2 for false negatives."""
    number: Floats
    classes: int
    """The number of classes that occur in the set, in targets or predictions."""

    def totals(self, weights: Floats) -> Floats:
        """The counts of all samples ``[classes, 3]``, with sample ``i`` counted ``weights[i]`` times."""
        numbers = weights[self.sample] * self.number
        sums = np.bincount(self.cell, numbers, minlength=3 * self.classes)
        return np.asarray(sums, np.float64).reshape(-1, 3)

    def overlap(self, weights: Floats, per_hit: int, *, micro: bool = False) -> float:
        """``h TP / (h TP + FP + FN)``, where h is ``per_hit``, of the whole set; NaN if nothing counts.

        The mean over the classes with counts or, ``micro``, of the counts of all classes.
        """
        hits, wrong, missed = self._summed(weights, micro).T
        return mean_ratio(per_hit * hits, per_hit * hits + wrong + missed)

    def overlap_contributions(self, samples: int, per_hit: int, *, micro: bool = False) -> Contributions:
        """The contributions to ``overlap``.

        They reach as far as those of a sample whose units all become wrong: each is missed in its class, and
        a false positive in another, which is taken for one of average frequency.
        """
        hits, wrong, missed = self._summed(np.ones(samples), micro).T
        above, below = per_hit * hits, per_hit * hits + wrong + missed
        present = below > 0
        ratio = np.divide(above, below, out=np.zeros_like(above), where=present)
        unit = np.divide(samples / present.sum(), below, out=np.zeros_like(above), where=present)
        gains = np.stack([per_hit * (1 - ratio) * unit, -ratio * unit, -ratio * unit], axis=1)
        true = hits + missed
        lost = unit * (per_hit - ratio * (per_hit - 1)) + (true @ (ratio * unit)) / max(true.sum(), 1.0)
        losses = self._by_sample(np.stack([lost, 0 * lost, lost], axis=1), samples)
        return Contributions(ratio[present].mean() + self._by_sample(gains, samples), float(losses.max()))

    def _summed(self, weights: Floats, micro: bool) -> Floats:
        totals = self.totals(weights)
        return totals.sum(axis=0, keepdims=True) if micro else totals

    def _by_sample(self, worth: Floats, samples: int) -> Floats:
        """The counts of each sample, summed with the worth of their cells ``[classes or 1, 3]``."""
        each = np.broadcast_to(worth, (self.classes, 3)).reshape(-1)[self.cell]
        return np.asarray(np.bincount(self.sample, each * self.number, minlength=samples), np.float64)


def counts(entries: Iterable[tuple[Array, Array, int, Array]]) -> Counts:
    """Collect counts from entries of samples, their labels, the part that these belong to, and numbers."""
    parts = [(sample, label, np.full(len(label), part), number) for sample, label, part, number in entries]
    sample, label, part, number = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    classes, index = np.unique(label, return_inverse=True)
    return Counts(sample.astype(np.int64), 3 * index + part, number.astype(np.float64), len(classes))


def mean_ratio(numerators: Floats, denominators: Floats) -> float:
    """The mean ratio of the classes whose denominator is not 0; NaN if there are none."""
    present = denominators > 0
    return float(np.mean(numerators[present] / denominators[present])) if present.any() else np.nan


def weighted_ratio(evidence: Floats, weights: Floats) -> float:
    """The ratio of the weighted sums of two quantities ``[n, 2]``; NaN if the second one is 0."""
    used = weights > 0  # a weight of 0 discards an infinite error, too
    above, below = (weights[used, None] * evidence[used]).sum(axis=0)
    return float(above / below) if below > 0 else np.nan


def ratio_contributions(evidence: Floats) -> Contributions:
    """The contributions to the ratio of the sums of two quantities ``[n, 2]``.

    The second one does not depend on the model: its share is what a sample can change.
    """
    above, below = evidence.T
    unit = len(evidence) / below.sum()
    ratio = float(above.sum() / below.sum())
    return Contributions(ratio + unit * (above - ratio * below), float(unit * below.max()))
