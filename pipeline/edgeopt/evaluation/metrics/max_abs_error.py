"""Largest absolute difference of the outputs from the source model's."""

from typing import ClassVar, Literal

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.plugin import Metric, Score
from edgeopt.results import Kind


class MaxAbsError(Metric):
    """``max |ref - out|`` over all samples and values; needs no labels.

    It shows whether a conversion is exact: float exports of softmax or logits differ in the sixth digit.
    For outputs that are not finite, the value is the largest float64.
    """

    kind: ClassVar[Kind] = "error"
    title: ClassVar[str] = "largest error"
    against: ClassVar[Literal["labels", "source"]] = "source"
    higher_is_better: ClassVar[bool] = False

    def score(self, outputs: Array, target: Array) -> Score:
        if outputs.shape != target.shape:
            raise UsageError(
                f"outputs of shape {list(outputs.shape)} cannot be compared with the source model's "
                f"of shape {list(target.shape)}",
                fix="a stage changed the output shape; use a metric that compares with labels",
            )
        error = np.abs(target.astype(np.float64) - outputs.astype(np.float64))
        worst = float(error.max()) if error.size else 0.0
        return Score(worst if np.isfinite(worst) else float(np.finfo(np.float64).max))
