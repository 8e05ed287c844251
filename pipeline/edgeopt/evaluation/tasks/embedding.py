"""One vector per sample, whose direction says what it shows: faces, speakers, products."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.tasks._outputs import OneOutput
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, PerSample
from edgeopt.results import Chart, Drawing, Histogram, Numbers


class Embedding(OneOutput):
    """Vectors of length 1, ``[n, d]``, that are compared by their cosine similarity.

    A vector of zeros stays one. A vector with values that are not finite is NaN, and similar to nothing. No
    output or label shows that a model computes embeddings, so the recipe has to name this task.
    """

    order: ClassVar[int] = 90
    metrics: ClassVar[tuple[str, ...]] = ("recall_at_k",)

    def decide(self, outputs: Outputs) -> Decisions:
        array = self.only(outputs)
        if array.ndim < 2 or sum(size > 1 for size in array.shape[1:]) > 1:
            raise UsageError(
                f"outputs of shape {list(array.shape)} are not one vector per sample",
                fix="embed the samples by one vector each, such as the mean over positions",
            )
        vectors = array.reshape(len(array), -1).astype(np.float64)
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
        return Decisions(vectors / np.where(lengths == 0, 1, lengths))

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        """The cosine similarity, 0..1: vectors at a right angle or more do not agree at all."""
        one, other = np.asarray(decisions.values, np.float64), np.asarray(source.values, np.float64)
        if one.shape != other.shape:
            return np.zeros(len(one))
        return np.asarray(np.nan_to_num((one * other).sum(axis=1)).clip(0, 1), np.float64)

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        return Numbers.of(np.asarray(decisions.values, np.float64)[sample])

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """How similar the vectors are to those of the source model."""
        one, other = np.asarray(decisions.values, np.float64), np.asarray(source.values, np.float64)
        if one.shape != other.shape:
            return ()
        similarity = (one * other).sum(axis=1).clip(-1, 1)
        title = "similarity to the vector of the original model"
        return (Histogram.of(title, "cosine similarity", None, similarity),)
