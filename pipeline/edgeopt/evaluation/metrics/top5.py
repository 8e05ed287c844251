"""Fraction of samples whose correct class is among the five highest scores."""

from typing import ClassVar

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._labels import class_labels
from edgeopt.model import Array
from edgeopt.plugin import Metric, Reading, Score
from edgeopt.results import Kind


class Top5(Metric):
    """Top-5 accuracy, 0..1. Of equal scores, the lower class index ranks first, as in top1."""

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    reads: ClassVar[Reading] = "scores"

    def score(self, outputs: Array, target: Array) -> Score:
        scores, labels = class_labels(outputs, target)
        classes = scores.shape[1]
        if classes < 5:
            raise UsageError(f"top5 needs at least 5 classes, the model has {classes}", fix="use top1")
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        correct = (best == labels[:, np.newaxis]).any(axis=1) & np.isfinite(scores).all(axis=1)
        return Score(float(correct.mean()), correct.astype(np.float64))
