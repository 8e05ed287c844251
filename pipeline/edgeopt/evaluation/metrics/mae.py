"""Mean absolute error of the outputs."""

from typing import ClassVar

import numpy as np

from edgeopt.evaluation.metrics._numbers import paired
from edgeopt.plugin import Metric, PerSample, Reading, Score
from edgeopt.results import Kind


class Mae(Metric):
    """Mean absolute error against labels of the outputs' shape ``[n, ...]``; lower is better.

    The mean over samples of ``mean |out - label|``. Outputs that are not finite make the value infinite.
    """

    kind: ClassVar[Kind] = "error"
    title: ClassVar[str] = "MAE"
    higher_is_better: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    reads: ClassVar[Reading] = "values"

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        values, expected = paired(outputs, target)
        errors = np.abs(values - expected).reshape(len(values), -1).mean(axis=1)
        errors = np.where(np.isfinite(errors), errors, np.inf)
        return Score(float(errors.mean()), errors)
