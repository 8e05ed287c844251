"""Average precision of scores."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._label_arrays import label_matrix
from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.evaluation.metrics._ranking import Ranking, Worth, positive_scores
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, Reading, Score
from edgeopt.results import Kind

Floats = NDArray[np.float64]


class AveragePrecision(Metric):
    """Area under precision ``P`` against recall ``R``, 0..1: ``sum (R_i - R_(i-1)) P_i`` over all thresholds.

    The mean over the labels with positive samples, for scores and labels of 0 or 1 ``[n, labels]``. For
    scores ``[n, classes]`` and labels ``[n]``, it is that of the second of two classes, or one-vs-rest for
    each of more. Equal scores share a threshold; there is no interpolation (Manning et al. 2008,
    "Introduction to Information Retrieval", section 8.4; average_precision_score of scikit-learn). Outputs
    that are not finite rank worst: a positive last, a negative first.
    """

    kind: ClassVar[Kind] = "fraction"
    title: ClassVar[str] = "AP"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multilabel")
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "scores"

    def score(self, outputs: Array, target: Array) -> Score:
        evidence = Ranking.of(*_scores_and_positives(outputs, target))
        if not evidence.positive.any():
            raise UsageError(
                "average_precision needs positive samples, all labels are 0",
                fix="evaluate on data with positive and negative samples",
            )
        return Score(self.weighted(evidence, np.ones(len(outputs))), evidence=evidence)

    def weighted(self, evidence: Ranking, weights: Floats) -> float:
        values = evidence.average_precisions(weights)
        defined = values[np.isfinite(values)]
        return float(np.mean(defined)) if len(defined) else np.nan

    def contributions(self, evidence: Ranking, samples: int) -> Contributions:
        return evidence.contributions(self.weighted(evidence, np.ones(samples)), _worth)


def _worth(hits: Floats, wrong: Floats) -> Worth | None:
    positives = float(hits[-1])
    if positives <= 0:
        return None
    precision, found = hits / (hits + wrong), np.diff(hits, prepend=0) / positives
    area = float((found * precision).sum())

    def from_here(values: Floats) -> Floats:
        return np.cumsum(values[::-1])[::-1]

    # A sample counts in the precision at its threshold and at all lower ones.
    diluted = from_here(found * precision / (hits + wrong))
    raised = from_here(found / (hits + wrong)) + (precision - area) / positives
    return Worth(raised - diluted, -diluted, (1 / positives, 0.0))


def _scores_and_positives(outputs: Array, target: Array) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores and whether each label applies ``[n, labels]``."""
    if target.ndim == 2 and (target.shape[1] > 1 or target.shape == outputs.shape):
        return outputs.astype(np.float64), label_matrix(target, outputs.shape)
    scores, labels = class_labels(outputs, target)
    if scores.shape[1] == 2:
        return positive_scores(scores), labels[:, None] == 1
    broken = ~np.isfinite(scores).all(axis=1, keepdims=True)
    return np.where(broken, np.nan, scores), labels[:, None] == np.arange(scores.shape[1])
