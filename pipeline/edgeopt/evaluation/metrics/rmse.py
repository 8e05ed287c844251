"""Root mean squared error of the outputs."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.metrics._counts import weighted_ratio
from edgeopt.evaluation.metrics._numbers import paired, squared_errors
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind


class Rmse(Metric):
    """Root mean squared error against labels of the outputs' shape ``[n, ...]``; lower is better.

    ``sqrt(mean (out - label)^2)`` over the values of the whole set, in the unit of the labels. Outputs that
    are not finite make the value infinite.
    """

    kind: ClassVar[Kind] = "error"
    title: ClassVar[str] = "RMSE"
    higher_is_better: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        errors = squared_errors(*paired(outputs, target))
        return Score(self.weighted(errors, np.ones(len(errors))), evidence=errors)

    def weighted(self, evidence: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        errors = np.stack([evidence, np.ones(len(evidence))], axis=1)
        return float(np.sqrt(weighted_ratio(errors, weights)))

    def contributions(self, evidence: NDArray[np.float64], samples: int) -> Contributions:
        value = self.weighted(evidence, np.ones(samples))
        return Contributions(value + (evidence - value**2) / (2 * value) if value else np.zeros(samples))
