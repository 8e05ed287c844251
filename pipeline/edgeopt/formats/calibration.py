"""Calibration: the quantization range of a tensor from a histogram of its values.

The histogram has a fixed number of bins, so memory does not grow with the number of samples. A value outside
of it doubles the bin width by merging neighbouring bins: every count stays exact, at a coarser resolution.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array

Calibrator: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
"""Choice of the range: minimum and maximum; percentiles, which clip outliers; minimum Kullback-Leibler
divergence of the quantized distribution (Migacz 2017); or minimum mean squared error."""

MIXED = 100.0
"""Ratio of the ranges of joined values from which 8 bits cannot serve both: the smaller keep few levels."""
BINS = 2048
LARGEST = 3e38
"""Larger magnitudes stand for infinity, as in masks and padding, and are not part of a range."""
CANDIDATES = 100
"""Candidate ranges for ``entropy`` and ``mse``."""
SMALLEST_SHARE = 0.05
"""Narrowest candidate, as a fraction of the range from minimum to maximum."""
MOST_COUNTED = 1 << 16
"""Values of one tensor and sample that are counted; of more, evenly spaced ones, and always the extremes."""


def spread(ranges: Iterable[tuple[float, float]]) -> float:
    """How many times larger the largest of several ranges is than the smallest; 1 for fewer than two."""
    extents = [extent for low, high in ranges if (extent := max(abs(low), abs(high))) > 0]
    return max(extents) / min(extents) if extents else 1.0


def bounded(values: Array) -> Array:
    """The values that do not stand for infinity.

    Raises:
        ValueError: a value is NaN.
    """
    with np.errstate(invalid="ignore"):
        within = np.abs(values) < LARGEST
    if within.all():
        return values
    if np.isnan(values).any():
        raise ValueError("a value is NaN")
    return values[within]


def _thinned(values: Array, start: int) -> Array:
    """The flat values, or about ``MOST_COUNTED`` of them at equal distances, shifted by ``start``."""
    flat = values.reshape(-1)
    step = -(-flat.size // MOST_COUNTED)
    # A common divisor with an axis would meet the same rows or channels again and again.
    while step > 1 and any(math.gcd(step, size) > 1 for size in values.shape):
        step += 1
    return flat[start % step :: step]


class Histogram:
    """Histogram of the values of one tensor over any number of samples, in constant memory."""

    def __init__(self, bins: int = BINS) -> None:
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.zeros = 0
        """Counted separately: zero is always exact, and after a ReLU it would dominate every loss."""
        self.minimum = math.inf
        self.maximum = -math.inf
        self._limit = 0.0
        """The bins cover [-limit, limit]; 0 until the first nonzero value."""
        self._samples = 0
        self.is_unbounded = False
        """Whether a value stands for infinity."""

    @property
    def count(self) -> int:
        return int(self.counts.sum()) + self.zeros

    def add(self, values: Array) -> None:
        """Add the values of one sample, of any shape; those that stand for infinity are left out.

        Raises:
            ValueError: a value is NaN.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not -LARGEST < low <= high < LARGEST:
            finite = bounded(values)
            self.is_unbounded |= finite.size < values.size
            if finite.size:
                self.add(finite)
            return
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._extend(max(abs(low), abs(high)))
        self._add_counts(_thinned(values, self._samples))
        self._samples += 1

    def _add_counts(self, values: Array) -> None:
        bins = len(self.counts)
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if zeros == values.size:
            return
        indices = (np.multiply(values, bins / 2 / self._limit) + bins / 2).astype(np.int64)
        counts = np.bincount(indices, minlength=bins + 1)
        counts[bins // 2] -= zeros
        # The largest value itself lies on the upper edge of the last bin.
        counts[bins - 1] += counts[bins]
        self.counts += counts[:bins]

    def _extend(self, largest: float) -> None:
        """Double the bin width until the bins cover ``largest``."""
        if not self._limit and largest:
            self._limit = largest
        while self._limit and largest > self._limit:
            half = len(self.counts) // 2
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[half // 2 : half // 2 + half] = pairs
            self._limit *= 2

    def clipped(self, low: float, high: float) -> float:
        """Fraction of the values outside a range, at the resolution of the bins."""
        centres = self._centres()
        outside = (centres < low) | (centres > high)
        return float(self.counts[outside].sum() / max(self.count, 1))

    def range(
        self,
        calibrator: Calibrator,
        *,
        percentile: float = 99.99,
        symmetric: bool = False,
        levels: int = 256,
    ) -> tuple[float, float]:
        """The range ``(low, high)`` to quantize to ``levels`` integers.

        It always includes zero, which must be exactly representable, and never exceeds the observed values.
        ``percentile`` is the percentage of the values that the calibrator of that name keeps inside.

        Raises:
            ValueError: the histogram is empty.
        """
        if not self.count:
            raise ValueError("the histogram is empty")
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if calibrator == "percentile":
            low, high = self._percentile_range(percentile, low, high)
        elif calibrator in ("entropy", "mse") and self._limit:
            low, high = self._least_loss_range(calibrator, low, high, symmetric, levels)
        if symmetric:
            high = max(-low, high)
            low = -high
        return low, high

    def _centres(self) -> NDArray[np.float64]:
        bins = len(self.counts)
        indices = np.arange(bins, dtype=np.float64)
        return (indices + 0.5 - bins / 2) * np.float64(2 * self._limit / bins)

    def _percentile_range(self, percentile: float, low: float, high: float) -> tuple[float, float]:
        """The range that clips the same number of values at both ends."""
        clipped = (1 - percentile / 100) * self.count / 2
        cumulative = np.cumsum(self.counts)
        # Zeros are not in the bins; in the cumulative count they belong between the two halves.
        cumulative[len(cumulative) // 2 :] += self.zeros
        centres = self._centres()
        half_width = 2 * self._limit / len(self.counts) / 2
        first = int(np.searchsorted(cumulative, clipped, side="right"))
        last = int(np.searchsorted(cumulative, self.count - clipped, side="left"))
        return (
            max(low, min(float(centres[first] - half_width), 0.0)),
            min(high, max(float(centres[min(last, len(centres) - 1)] + half_width), 0.0)),
        )

    def _least_loss_range(
        self, calibrator: Calibrator, low: float, high: float, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """The candidate with the smallest loss: first both ends shrink together, then each end alone."""
        loss = self._divergence if calibrator == "entropy" else self._squared_errors()
        shares = np.linspace(SMALLEST_SHARE, 1.0, CANDIDATES)

        def scaled(below: float, above: float) -> tuple[float, float]:
            if symmetric:
                largest = max(-low, high) * max(below, above)
                return -largest, largest
            return low * below, high * above

        best = min(shares, key=lambda share: loss(*scaled(share, share), levels))
        above = below = float(best)
        # Coordinate descent: all pairs of ends would be CANDIDATES squared evaluations.
        if not symmetric and low < 0 < high:
            above = float(min(shares, key=lambda share: loss(*scaled(below, share), levels)))
            below = float(min(shares, key=lambda share: loss(*scaled(share, above), levels)))
        return scaled(below, above)

    def _squared_errors(self) -> Callable[[float, float, int], float]:
        """The sum of the squared errors of all values after quantization of a range to some levels."""
        centres = self._centres()
        # Moments of the values below each bin: a candidate costs no pass over the bins.
        powers = np.stack([self.counts * centres**power for power in range(3)])
        below = np.concatenate([np.zeros((3, 1)), np.cumsum(powers, axis=1)], axis=1)

        def loss(low: float, high: float, levels: int) -> float:
            scale = (high - low) / (levels - 1)
            if scale <= 0:
                return math.inf
            first, end = np.searchsorted(centres, low), np.searchsorted(centres, high, side="right")
            clipped = 0.0
            for edge, (count, total, square) in (
                (low, below[:, first]),
                (high, below[:, -1] - below[:, end]),
            ):
                clipped += square - 2 * edge * total + edge * edge * count
            rounding = scale * scale / 12  # variance of a uniform rounding error
            return float(clipped + rounding * (below[0, end] - below[0, first]))

        return loss

    def _divergence(self, low: float, high: float, levels: int) -> float:
        """Kullback-Leibler divergence of the clipped and quantized distribution from the original one.

        Values outside the range count at its ends, where clipping moves them. The quantized distribution
        spreads the mass of each step evenly over the nonempty bins of that step.
        """
        centres = self._centres()
        first = int(np.searchsorted(centres, low))
        last = int(np.searchsorted(centres, high, side="right"))
        if last - first < 2:
            return math.inf
        original = self.counts[first:last].astype(np.float64)
        inside = original.copy()
        original[0] += self.counts[:first].sum()
        original[-1] += self.counts[last:].sum()
        steps = np.minimum(
            ((centres[first:last] - low) / ((high - low) / levels)).astype(np.int64), levels - 1
        )
        # Without the clipped mass (Migacz 2017): the difference to `original` is what penalizes clipping.
        mass = np.bincount(steps, inside, levels)
        nonempty = np.bincount(steps, inside > 0, levels)
        spread = np.divide(mass, nonempty, out=np.zeros_like(mass), where=nonempty > 0)[steps] * (inside > 0)
        p, q = original / original.sum(), spread / max(spread.sum(), 1.0)
        # Clipped values may fall into an end bin that is empty in q: smoothing keeps the divergence finite.
        q = (q + 1e-9) / (1 + 1e-9 * len(q))
        support = p > 0
        return float((p[support] * np.log(p[support] / q[support])).sum())
