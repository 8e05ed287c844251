"""Equal error rate of a binary classifier."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.evaluation.metrics._ranking import Ranking, positive_scores
from edgeopt.model import Array
from edgeopt.plugin import Metric, Reading, Score
from edgeopt.results import Kind

Floats = NDArray[np.float64]


class EqualErrorRate(Metric):
    """The error rate at which as many negatives are accepted as positives rejected, 0..1; lower is better.

    Scores are ``[n, 2]``, or one per sample; labels ``[n]`` are 0 and 1. If no threshold gives equal rates,
    they are interpolated between the two nearest operating points (Martin et al. 1997, "The DET curve in
    assessment of detection task performance"). Outputs that are not finite rank worst: a positive last, a
    negative first.
    """

    kind: ClassVar[Kind] = "fraction"
    title: ClassVar[str] = "EER"
    higher_is_better: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "scores"

    def score(self, outputs: Array, target: Array) -> Score:
        scores, labels = class_labels(outputs, target)
        if scores.shape[1] != 2:
            raise UsageError(
                f"equal_error_rate needs a model of two classes, this one has {scores.shape[1]}",
                fix="use top1 or roc_auc",
            )
        if len(present := np.unique(labels)) < 2:
            raise UsageError(
                f"equal_error_rate needs samples of both classes, all labels are {present[0]}",
                fix="evaluate on data with positive and negative samples",
            )
        evidence = Ranking.of(positive_scores(scores), labels[:, None] == 1)
        return Score(self.weighted(evidence, np.ones(len(labels))), evidence=evidence)

    def weighted(self, evidence: Ranking, weights: Floats) -> float:
        ((hits, wrong),) = evidence.points(weights)
        if not (hits[-1] > 0 and wrong[-1] > 0):
            return np.nan
        accepted = np.concatenate([[0], wrong / wrong[-1]])
        gaps = accepted - (1 - np.concatenate([[0], hits / hits[-1]]))  # from -1 to 1, never decreasing
        below = int(np.searchsorted(gaps, 0, side="right")) - 1
        fraction = -gaps[below] / (gaps[below + 1] - gaps[below])
        return float(accepted[below] + fraction * (accepted[below + 1] - accepted[below]))
