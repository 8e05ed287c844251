"""From the values that a tensor takes to the range that its integers should cover.

A histogram of fixed size stands for all values seen, so memory does not grow with the number of
samples. When a value falls outside, the bins double in width by merging pairs, which keeps every
count in the right bin; only their resolution becomes coarser.
"""

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array

Calibrator: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
"""How a range is chosen: the extremes; the extremes without a few outliers; least Kullback-Leibler
divergence of what is left after quantizing (Migacz 2017); or least mean squared error."""

BINS = 2048
CANDIDATES = 100
"""Ranges that are compared for ``entropy`` and ``mse``."""
SMALLEST_SHARE = 0.05
"""Of the extremes: no narrower range is ever looked at."""


class Histogram:
    """Counts of the values of one tensor, over any number of samples, in constant memory."""

    def __init__(self, bins: int = BINS) -> None:
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.zeros = 0
        """Counted apart: zero is always exact, and after a ReLU it would outweigh everything else."""
        self.minimum = math.inf
        self.maximum = -math.inf
        self._limit = 0.0
        """The bins cover [-limit, limit]; 0 until the first value that is not zero."""

    @property
    def count(self) -> int:
        return int(self.counts.sum()) + self.zeros

    def add(self, values: Array) -> None:
        """Count the values of one sample, of any shape.

        Raises:
            ValueError: one of them is not finite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a value is NaN or infinite")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._cover(max(abs(low), abs(high)))
        bins = len(self.counts)
        some = values[values != 0]
        self.zeros += values.size - some.size
        if some.size:
            where = (some * (bins / 2 / self._limit) + bins / 2).astype(np.int64)
            self.counts += np.bincount(np.clip(where, 0, bins - 1), minlength=bins)

    def _cover(self, largest: float) -> None:
        if not self._limit and largest:
            self._limit = largest
        while self._limit and largest > self._limit:
            half = len(self.counts) // 2
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[half // 2 : half // 2 + half] = pairs
            self._limit *= 2

    def clipped(self, low: float, high: float) -> float:
        """Share of the values outside a range, to the resolution of the bins."""
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
        """The range to cover with ``levels`` integers. It always holds zero, which must be exact.

        ``percentile`` is the share of values, in percent, that ``percentile`` keeps inside. A range is
        never wider than the values seen.

        Raises:
            ValueError: no value has been added.
        """
        if not self.count:
            raise ValueError("no values were seen")
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if calibrator == "percentile":
            low, high = self._inside(percentile, low, high)
        elif calibrator in ("entropy", "mse") and self._limit:
            low, high = self._least(calibrator, low, high, symmetric, levels)
        if symmetric:
            high = max(-low, high)
            low = -high
        return low, high

    def _centres(self) -> NDArray[np.float64]:
        bins = len(self.counts)
        places = np.arange(bins, dtype=np.float64)
        return (places + 0.5 - bins / 2) * np.float64(2 * self._limit / bins)

    def _inside(self, percentile: float, low: float, high: float) -> tuple[float, float]:
        outside = (1 - percentile / 100) * self.count / 2
        below = np.cumsum(self.counts)
        below[len(below) // 2 :] += self.zeros
        edges = self._centres()
        width = 2 * self._limit / len(self.counts) / 2
        first = int(np.searchsorted(below, outside, side="right"))
        last = int(np.searchsorted(below, self.count - outside, side="left"))
        return (
            max(low, min(float(edges[first] - width), 0.0)),
            min(high, max(float(edges[min(last, len(edges) - 1)] + width), 0.0)),
        )

    def _least(
        self, calibrator: Calibrator, low: float, high: float, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """The candidate of least loss. Both ends shrink together; then each end alone is tried."""
        loss = self._divergence if calibrator == "entropy" else self._squared_error
        shares = np.linspace(SMALLEST_SHARE, 1.0, CANDIDATES)

        def ends(below: float, above: float) -> tuple[float, float]:
            if symmetric:
                largest = max(-low, high) * max(below, above)
                return -largest, largest
            return low * below, high * above

        best = min(shares, key=lambda share: loss(*ends(share, share), levels))
        above = below = float(best)
        if not symmetric and low < 0 < high:
            above = float(min(shares, key=lambda share: loss(*ends(below, share), levels)))
            below = float(min(shares, key=lambda share: loss(*ends(share, above), levels)))
        return ends(below, above)

    def _squared_error(self, low: float, high: float, levels: int) -> float:
        """Sum of squared errors of all values when quantized to ``levels`` in the range."""
        scale = (high - low) / (levels - 1)
        if scale <= 0:
            return math.inf
        centres = self._centres()
        inside = np.clip(centres, low, high)
        rounding = scale * scale / 12  # of values spread evenly inside a step
        error = (centres - inside) ** 2 + np.where(centres == inside, rounding, 0.0)
        return float((self.counts * error).sum())

    def _divergence(self, low: float, high: float, levels: int) -> float:
        """Kullback-Leibler divergence of the clipped and quantized distribution from the true one.

        Values beyond the range count as its end, as they will be stored; the quantized distribution spreads
        what falls into a step evenly over the step's bins that are not empty.
        """
        centres = self._centres()
        first = int(np.searchsorted(centres, low))
        last = int(np.searchsorted(centres, high, side="right"))
        if last - first < 2:
            return math.inf
        true = self.counts[first:last].astype(np.float64)
        kept = true.copy()
        true[0] += self.counts[:first].sum()
        true[-1] += self.counts[last:].sum()
        steps = np.minimum(
            ((centres[first:last] - low) / ((high - low) / levels)).astype(np.int64), levels - 1
        )
        mass = np.bincount(steps, kept, levels)
        filled = np.bincount(steps, kept > 0, levels)
        spread = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)[steps] * (kept > 0)
        p, q = true / true.sum(), spread / max(spread.sum(), 1.0)
        # A clipped value whose end bin is empty otherwise: smoothing keeps the divergence finite.
        q = (q + 1e-9) / (1 + 1e-9 * len(q))
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / q[seen])).sum())
