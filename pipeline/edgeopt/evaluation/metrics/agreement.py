"""Fraction of samples with the same prediction as the source model."""

from typing import ClassVar, Literal

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.evaluation.class_scores import class_scores
from edgeopt.model import Array
from edgeopt.plugin import Metric, Score
from edgeopt.results import Kind


class Agreement(Metric):
    """Fraction of samples with the same argmax as the source model, 0..1; needs no labels.

    A single output is a binary decision: on the same side of 0.5 for probabilities (if the source's
    values are all in 0..1), of 0 for logits. Outputs with several decisions per sample, such as one per
    pixel, have classes on the last axis; the sample counts by its fraction of equal decisions. A sample with
    outputs that are not finite counts as 0.
    """

    kind: ClassVar[Kind] = "fraction"
    against: ClassVar[Literal["labels", "source"]] = "source"

    def score(self, outputs: Array, target: Array) -> Score:
        if outputs.shape != target.shape:
            raise UsageError(
                f"outputs of shape {list(outputs.shape)} cannot be compared with the source model's "
                f"of shape {list(target.shape)}",
                fix="a stage changed the output shape; use a metric that compares with labels",
            )
        count = len(outputs)
        if outputs.size == count:
            source = target.astype(np.float64)
            probability = bool(((source >= 0) & (source <= 1)).all())
            threshold = 0.5 if probability else 0.0
            equal = ((outputs.astype(np.float64) > threshold) == (source > threshold)).reshape(count, 1)
        else:
            decided = class_scores(outputs).argmax(axis=-1)
            equal = (decided == class_scores(target).argmax(axis=-1)).reshape(count, -1)
        finite = np.isfinite(outputs.astype(np.float64)).reshape(count, -1).all(axis=1)
        per_sample = equal.mean(axis=1) * finite
        return Score(float(per_sample.mean()), per_sample)
