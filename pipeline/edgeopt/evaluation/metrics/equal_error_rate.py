"""Equal error rate of a binary classifier."""

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.evaluation.metrics._ranking import Ranking, Worth, positive_scores
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, Reading, Score
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
        accepted, rejected = _rates(hits, wrong)
        below = _crossing(accepted, rejected)
        gaps = accepted - rejected
        fraction = -gaps[below] / (gaps[below + 1] - gaps[below])
        return float(accepted[below] + fraction * (accepted[below + 1] - accepted[below]))

    def contributions(self, evidence: Ranking, samples: int) -> Contributions:
        return evidence.contributions(self.weighted(evidence, np.ones(samples)), _worth)


def _rates(hits: Floats, wrong: Floats) -> tuple[Floats, Floats]:
    """The fractions of negatives accepted and of positives rejected, before each threshold and at the end."""
    accepted = np.concatenate([[0], wrong / wrong[-1]])
    return accepted, 1 - np.concatenate([[0], hits / hits[-1]])


def _crossing(accepted: Floats, rejected: Floats) -> int:
    """The last operating point that accepts no more negatives than it rejects positives."""
    # The difference goes from -1 to 1, and never decreases.
    return int(np.searchsorted(accepted - rejected, 0, side="right")) - 1


def _worth(hits: Floats, wrong: Floats) -> Worth:
    accepted, rejected = _rates(hits, wrong)
    below = _crossing(accepted, rejected)
    # The slopes of both rates, over enough thresholds to be more than the order of two samples.
    near = math.isqrt(len(hits))
    low, high = max(below - near, 0), min(below + 1 + near, len(hits))
    rise, fall = accepted[high] - accepted[low], rejected[low] - rejected[high]
    share = rise / (rise + fall)
    positive, negative = share / hits[-1], (1 - share) / wrong[-1]
    beyond = np.arange(len(hits)) >= below
    return Worth(
        positive * (beyond - rejected[below]), negative * (~beyond - accepted[below]), (positive, negative)
    )
