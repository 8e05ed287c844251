"""What metrics of the whole set are computed from: counts of each sample."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array

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
