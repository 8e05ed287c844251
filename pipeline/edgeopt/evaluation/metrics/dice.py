"""Dice coefficient of label maps."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.evaluation.metrics._counts import Counts, mean_ratio
from edgeopt.evaluation.metrics._masks import class_counts
from edgeopt.plugin import Metric, PerSample, Reading, Score
from edgeopt.results import Kind


class Dice(Metric):
    """Dice coefficient, 0..1, of label maps ``[n, H, W]`` and masks of the same size.

    ``2 TP / (2 TP + FP + FN)`` of the pixels of the whole set, averaged over the classes that occur in masks
    or predictions (Dice 1945, "Measures of the amount of ecologic association between species"). Pixels whose
    true class is ``ignore`` do not count. A pixel with scores that are not finite is a miss.
    """

    kind: ClassVar[Kind] = "fraction"
    title: ClassVar[str] = "Dice"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    ignore: int | None = Field(255, description="class in the masks of pixels that do not count; null: none")

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        evidence = class_counts(outputs, target, self.ignore)
        return Score(self.weighted(evidence, np.ones(len(outputs))), evidence=evidence)

    def weighted(self, evidence: Counts, weights: NDArray[np.float64]) -> float:
        hits, wrong, missed = evidence.totals(weights).T
        return mean_ratio(2 * hits, 2 * hits + wrong + missed)
