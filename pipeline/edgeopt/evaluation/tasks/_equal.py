"""Agreement of decisions that are several choices per sample."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.plugin import Decisions


def fraction_equal(decisions: Decisions, source: Decisions) -> NDArray[np.float64]:
    """The fraction of equal choices of each sample ``[n]``; a negative choice is none, and equals nothing."""
    one, other = np.asarray(decisions.values, np.int64), np.asarray(source.values, np.int64)
    if one.shape != other.shape:
        return np.zeros(len(one))
    equal = (one == other) & (one >= 0)
    return np.asarray(equal.reshape(len(one), -1).mean(axis=1), np.float64)
