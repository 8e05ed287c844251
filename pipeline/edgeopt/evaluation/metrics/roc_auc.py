"""Area under the receiver operating characteristic."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.evaluation.metrics._ranking import Ranking, Worth
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, Reading, Score
from edgeopt.results import Kind

Floats = NDArray[np.float64]


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
        finite = np.isfinite(scores)
        lowest = np.nextafter(scores.min(where=finite, initial=0.0), -np.inf)
        scores = np.where(finite, scores, lowest)
        evidence = Ranking.of(scores[:, present], labels[:, None] == present)
        return Score(self.weighted(evidence, np.ones(len(labels))), evidence=evidence)

    def weighted(self, evidence: Ranking, weights: Floats) -> float:
        areas = [_area(*points) for points in evidence.points(weights)]
        known = [area for area in areas if area is not None]
        return float(np.mean(known)) if known else np.nan

    def contributions(self, evidence: Ranking, samples: int) -> Contributions:
        return evidence.contributions(self.weighted(evidence, np.ones(samples)), _worth)


def _area(hits: Floats, wrong: Floats) -> float | None:
    """The fraction of pairs of a positive and a negative in the right order; ties count half."""
    if not (hits[-1] > 0 and wrong[-1] > 0):
        return None
    above = hits - np.diff(hits, prepend=0) / 2
    return float((np.diff(wrong, prepend=0) * above).sum() / (hits[-1] * wrong[-1]))


def _worth(hits: Floats, wrong: Floats) -> Worth | None:
    area = _area(hits, wrong)
    if area is None:
        return None
    positives, negatives = float(hits[-1]), float(wrong[-1])
    below = 1 - (wrong - np.diff(wrong, prepend=0) / 2) / negatives
    above = (hits - np.diff(hits, prepend=0) / 2) / positives
    shares = 1 / positives, 1 / negatives
    return Worth((below - area) * shares[0], (above - area) * shares[1], shares)
