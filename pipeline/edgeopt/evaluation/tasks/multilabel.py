"""Several labels per sample, each of them by itself."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._label_arrays import label_matrix
from edgeopt.evaluation.metrics._ranking import Ranking
from edgeopt.evaluation.tasks._equal import fraction_equal
from edgeopt.evaluation.tasks._outputs import OneOutputOfScores, are_probabilities
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Decisions, PerSample
from edgeopt.results import ByClass, Chart, Classes, Drawing


class Multilabel(OneOutputOfScores):
    """The labels whose probability is above a threshold: 0 or 1 each, ``[n, labels]``.

    Outputs are probabilities if all values are in 0..1, otherwise logits, of which the sigmoid is taken. A
    value that is not finite has the probability NaN and the decision -1, which agrees with nothing.
    """

    order: ClassVar[int] = 15
    metrics: ClassVar[tuple[str, ...]] = ("f1",)

    threshold: float = Field(0.5, gt=0, lt=1, description="probability above which a label applies")

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        if (
            len(outputs.arrays) != 1
            or not isinstance(targets, np.ndarray)
            or targets.dtype.kind not in "biuf"
        ):
            return False
        (array,) = outputs.arrays
        same = array.ndim == 2 and array.dtype.kind == "f" and array.shape == targets.shape
        if not same or not np.isin(targets, (0, 1)).all():
            return False
        return bool((targets.sum(axis=1) != 1).any())  # otherwise they are one-hot classes

    def decide(self, outputs: Outputs) -> Decisions:
        array = self.only(outputs)
        if sum(size > 1 for size in array.shape[1:]) > 1:
            raise UsageError(
                f"outputs of shape {list(array.shape)} are not one value per label",
                fix="name the task of the model, such as 'task: segmentation'",
            )
        scores = probabilities_of(array.reshape(len(array), -1), self.probabilities)
        values = np.where(np.isfinite(scores), scores > self.threshold, -1)
        return Decisions(values.astype(np.int64), scores)

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        return fraction_equal(decisions, source)

    def expected(self, targets: PerSample) -> Decisions | None:
        try:
            return Decisions(label_matrix(np.asarray(targets), np.shape(targets)).astype(np.int64))
        except UsageError:
            return None

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        """The labels that apply."""
        labels = np.flatnonzero(np.asarray(decisions.values)[sample] > 0)
        if decisions.scores is None:
            return Classes.of(labels.tolist(), [None] * len(labels))
        scores = np.asarray(decisions.scores, np.float64)[sample, labels]
        order = np.argsort(-scores, kind="stable")
        return Classes.of(labels[order].tolist(), scores[order].tolist())

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """The average precision of every label."""
        if targets is None or decisions.scores is None or source.scores is None:
            return ()
        before, after = (np.asarray(each.scores, np.float64) for each in (source, decisions))
        positive = label_matrix(np.asarray(targets), before.shape)
        weights, labels = np.ones(len(before)), range(before.shape[1])
        values = [Ranking.of(each, positive).average_precisions(weights).tolist() for each in (before, after)]
        return (ByClass.of("average precision", "positive", labels, positive.sum(axis=0).tolist(), *values),)


def probabilities_of(outputs: Array, are_known: bool | None = None) -> NDArray[np.float64]:
    """The values if they are probabilities (default: if all finite ones are in 0..1), else their sigmoid.

    Values that are not finite become NaN.
    """
    values = outputs.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    if are_probabilities(values) if are_known is None else are_known:
        return values
    return np.asarray(np.exp(-np.logaddexp(0, -values)), np.float64)  # does not overflow
