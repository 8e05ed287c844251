"""Fraction of samples whose highest score is the correct class."""

from typing import ClassVar

import numpy as np

from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.model import Array
from edgeopt.plugin import Metric, Reading, Score
from edgeopt.results import Kind


class Top1(Metric):
    """Top-1 accuracy, 0..1. A sample with outputs that are not finite counts as wrong."""

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    reads: ClassVar[Reading] = "scores"

    def score(self, outputs: Array, target: Array) -> Score:
        scores, labels = class_labels(outputs, target)
        correct = (scores.argmax(axis=1) == labels) & np.isfinite(scores).all(axis=1)
        return Score(float(correct.mean()), correct.astype(np.float64))
