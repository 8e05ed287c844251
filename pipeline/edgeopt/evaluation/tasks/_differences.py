"""Charts of decisions that are numbers."""

import numpy as np

from edgeopt.plugin import Decisions
from edgeopt.results import Chart, Histogram


def differences(decisions: Decisions, source: Decisions) -> tuple[Chart, ...]:
    """A histogram of the differences of all values from those of the source model."""
    one, other = np.asarray(decisions.values, np.float64), np.asarray(source.values, np.float64)
    if one.shape != other.shape:
        return ()
    title = "differences from the values of the original model"
    return (Histogram.of(title, "difference", None, one - other),)
