"""One class per sample."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.tasks._outputs import OneOutputOfScores, are_probabilities
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Decisions, PerSample
from edgeopt.results import Classes, Drawing

UNDECIDED = -1
"""The class of a sample with scores that are not finite."""


class Classification(OneOutputOfScores):
    """The class with the highest score. A single score is that of a binary classifier."""

    order: ClassVar[int] = 10
    metrics: ClassVar[tuple[str, ...]] = ("top1",)

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        if len(outputs.arrays) != 1:
            return False
        (array,) = outputs.arrays
        axes = sum(size > 1 for size in array.shape[1:])
        if targets is None:  # a single number may be anything
            return array.dtype.kind == "f" and axes == 1
        return array.dtype.kind == "f" and axes <= 1 and _are_classes(targets)

    def decide(self, outputs: Outputs) -> Decisions:
        array = self.only(outputs)
        scores = class_scores(array, self.probabilities)
        if scores.ndim != 2:
            raise UsageError(
                f"outputs of shape {list(array.shape)} are not one score per class",
                fix="name the model's task, such as 'task: segmentation', or use your own metric: "
                "{uses: function}",
            )
        return Decisions(np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), UNDECIDED), scores)

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        one, other = np.asarray(decisions.values), np.asarray(source.values)
        return np.asarray((one == other) & (one != UNDECIDED), np.float64)

    def expected(self, targets: PerSample) -> Decisions | None:
        return Decisions(np.asarray(targets, np.int64).reshape(-1)) if _are_classes(targets) else None

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        label, score = int(np.asarray(decisions.values)[sample]), None
        if label == UNDECIDED:
            return Classes.of([], [])
        if self.probabilities and decisions.scores is not None:
            score = float(np.asarray(decisions.scores, np.float64)[sample, label])
        return Classes.of([label], [score])


def _are_classes(labels: PerSample) -> bool:
    return isinstance(labels, np.ndarray) and labels.dtype.kind in "biu" and labels.size == len(labels)


def class_scores(outputs: Array, probabilities: bool | None = None) -> NDArray[np.float64]:
    """Convert outputs to one score per class, shape ``[n, ..., classes]`` with at least two classes.

    Axes of length 1 between batch and classes are dropped. A single value per sample is the output of a
    binary classifier: a probability or a logit; by default, a probability if all values are in 0..1.
    """
    scores = np.asarray(outputs, np.float64)
    if scores.ndim < 2 or scores.size == len(scores):
        positive = scores.reshape(-1, 1)
        if probabilities is None:
            probabilities = are_probabilities(positive)
        negative = 1 - positive if probabilities else -positive
        return np.concatenate([negative, positive], axis=1)
    if scores.size == len(scores) * scores.shape[-1]:
        return scores.reshape(len(scores), -1)
    return scores
