"""The values of two models on the same samples."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RAREST = 0.01
"""Fraction of samples with a large change that must not be missed if the metric has no known range."""


class Paired(NamedTuple):
    """One value per sample, before and after; higher is better."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    is_fraction: bool = False
    """Whether the metric has no value outside 0..1 (or -1..0, negated)."""
    reach: float | None = None
    """If these are contributions to a metric of the whole set: by how much one may change, 0 if unknown."""

    @property
    def drops(self) -> NDArray[np.float64]:
        """Drop of each sample."""
        return self.before - self.after

    @property
    def of_set(self) -> bool:
        """Whether the values are contributions to a metric of the whole set."""
        return self.reach is not None

    @property
    def is_bounded(self) -> bool:
        """Whether the largest possible change of a value is known."""
        return self.is_fraction if self.reach is None else self.reach > 0

    @property
    def is_binary(self) -> bool:
        """Whether every value is 1 (correct) or 0 (wrong)."""
        if self.of_set:
            return False
        # Zeros alone may just as well be losses.
        known = self.is_fraction or bool((self.before == 1).any() or (self.after == 1).any())
        return known and bool(
            np.isin(self.before, (0.0, 1.0)).all() and np.isin(self.after, (0.0, 1.0)).all()
        )

    @property
    def worse(self) -> int:
        """Number of samples with a lower value than before."""
        return int((self.drops > 0).sum())

    @property
    def better(self) -> int:
        """Number of samples with a higher value than before."""
        return int((self.drops < 0).sum())

    @property
    def unchanged(self) -> bool:
        """Whether every sample has the value that it had before."""
        return np.array_equal(self.before, self.after)

    @property
    def range(self) -> float:
        """The largest minus the smallest value that is known to be possible; 1 for fractions."""
        values = np.concatenate([self.before, self.after])
        if not self.of_set and self.is_fraction and np.abs(values).max(initial=0) <= 1:
            return 1.0
        return max(float(values.max(initial=0) - values.min(initial=0)), self.reach or 0.0)

    def largest_change(self, confidence: float) -> float | None:
        """The largest possible change of one sample; None if the samples say nothing about it.

        It is 1 for fractions, and at least the reach of contributions. Otherwise it is the range of all
        values and 0, provided that there are enough samples to see, at this confidence, a change that affects
        one of a hundred.
        """
        enough = self.is_bounded or len(self.before) >= smallest_set(confidence)
        return self.range if enough and 0 < self.range < math.inf else None


def common_reach(one: float, other: float) -> float:
    """The reach of pairs of contributions of two models; 0 if that of one is unknown."""
    return max(one, other) if one and other else 0.0


def smallest_set(confidence: float) -> int:
    """Number of samples that show a change of one in a hundred with this probability ("rule of three")."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - RAREST))
