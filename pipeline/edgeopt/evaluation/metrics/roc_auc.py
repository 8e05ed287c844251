"""Area under the receiver operating characteristic."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.model import Array
from edgeopt.plugin import Metric, Reading, Score
from edgeopt.results import Kind


class RocAuc(Metric):
    """ROC AUC, 0..1: the probability that a positive sample scores above a negative one.

    Binary for two classes; otherwise one-vs-rest for each class among the labels, macro-averaged. Computed
    from ranks, with ties counted as half (Mann and Whitney 1947). Outputs that are not finite rank lowest.
    """

    kind: ClassVar[Kind] = "number"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "scores"

    def score(self, outputs: Array, target: Array) -> Score:
        scores, labels = class_labels(outputs, target)
        present = np.unique(labels)
        if len(present) < 2:
            raise UsageError(
                f"roc_auc needs samples of at least two classes, all labels are {present[0]}",
                fix="evaluate on data with positive and negative samples",
            )
        if scores.shape[1] == 2:
            # The difference of two logits has the same order as their softmax; probabilities need no change.
            if not ((scores >= 0) & (scores <= 1)).all():
                scores = np.stack([scores[:, 0] - scores[:, 1], scores[:, 1] - scores[:, 0]], axis=1)
            present = np.array([1])
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        return Score(float(np.mean([_area(scores[:, k], labels == k) for k in present])))


def _area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """AUC from the rank sum of the positives; ties get the mean of their ranks."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    above = int(positive.sum())
    below = len(positive) - above
    return float((rank[positive].sum() - above * (above + 1) / 2) / (above * below))
