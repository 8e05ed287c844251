"""One class per sample."""

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.tasks._outputs import are_probabilities, only, position
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Decisions, PerSample, Task

UNDECIDED = -1
"""The class of a sample with scores that are not finite."""


class Classification(Task):
    """The class with the highest score. A single score is that of a binary classifier."""

    order: ClassVar[int] = 10
    metrics: ClassVar[tuple[str, ...]] = ("top1",)

    output: str | None = Field(None, description="name of the output; needed if there are several")
    probabilities: bool | None = Field(
        None,
        description="for a single score: a probability, or a logit; default: as the source's values show",
    )

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        if len(outputs.arrays) != 1:
            return False
        (array,) = outputs.arrays
        axes = sum(size > 1 for size in array.shape[1:])
        if targets is None:  # a single number may be anything
            return array.dtype.kind == "f" and axes == 1
        return array.dtype.kind == "f" and axes <= 1 and _are_classes(targets)

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        return position(self.output, names, self)

    def settled(self, source: Outputs) -> Self:
        if self.probabilities is not None:
            return self
        probabilities = are_probabilities(only(source, self.output, self))
        return self.model_copy(update={"probabilities": probabilities})

    def decide(self, outputs: Outputs) -> Decisions:
        array = only(outputs, self.output, self)
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
