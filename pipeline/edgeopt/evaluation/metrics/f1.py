"""F1 score of decisions."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import Counts, counts
from edgeopt.evaluation.metrics._label_arrays import class_indices, label_matrix
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, Reading, Score
from edgeopt.results import Kind


class F1(Metric):
    """``2 TP / (2 TP + FP + FN)`` of the whole set, 0..1: the harmonic mean of precision and recall.

    Decisions are one class per sample ``[n]``, or 0 or 1 for each label ``[n, labels]``; labels are the same.
    ``macro`` averages the scores of the classes that occur in labels or decisions, ``micro`` adds their
    counts (Manning et al. 2008, "Introduction to Information Retrieval", section 13.6). A sample
    with outputs that are not finite is a miss of its class; such a value of one label is wrong.
    """

    kind: ClassVar[Kind] = "fraction"
    title: ClassVar[str] = "F1"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multilabel")
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    average: Literal["macro", "micro"] = Field(
        "macro", description="macro: mean over classes; micro: of the counts of all classes"
    )

    def score(self, outputs: Array, target: Array) -> Score:
        decided = np.asarray(outputs, np.int64)
        evidence = _of_classes(decided, target) if decided.ndim == 1 else _of_labels(decided, target)
        if not evidence.classes:
            raise UsageError("no label applies to any sample, and none is predicted", fix="check the labels")
        return Score(self.weighted(evidence, np.ones(len(outputs))), evidence=evidence)

    def weighted(self, evidence: Counts, weights: NDArray[np.float64]) -> float:
        return evidence.overlap(weights, 2, micro=self.average == "micro")

    def contributions(self, evidence: Counts, samples: int) -> Contributions:
        return evidence.overlap_contributions(samples, 2, micro=self.average == "micro")


def _of_classes(decided: NDArray[np.int64], target: Array) -> Counts:
    labels = class_indices(target, len(decided))
    hit, answered = decided == labels, decided >= 0
    chosen = ((hit, labels), (~hit & answered, decided), (~hit, labels))
    return counts(
        (np.flatnonzero(which), of[which], part, np.ones(int(which.sum())))
        for part, (which, of) in enumerate(chosen)
    )


def _of_labels(decided: NDArray[np.int64], target: Array) -> Counts:
    labels = label_matrix(target, decided.shape)
    applies = np.where(decided < 0, ~labels, decided > 0)
    chosen = (applies & labels, applies & ~labels, ~applies & labels)
    entries = []
    for part, which in enumerate(chosen):
        sample, label = np.nonzero(which)
        entries.append((sample, label, part, np.ones(len(sample))))
    return counts(entries)
