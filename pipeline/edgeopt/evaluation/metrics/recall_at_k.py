"""Retrieval by embeddings."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import ratio_contributions, weighted_ratio
from edgeopt.evaluation.metrics._label_arrays import class_indices
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, Reading, Score
from edgeopt.results import Kind

EQUAL = 1e-12
"""Difference of two cosines that is rounding."""
BLOCK = 2**23
"""Similarities that are computed at a time: 64 MiB."""

Floats = NDArray[np.float64]


class RecallAtK(Metric):
    """Fraction of samples with one of the same label among the ``k`` nearest others, 0..1.

    Vectors are ``[n, d]`` of length 1, compared by their cosine; labels ``[n]`` are identities (Oh Song et
    al. 2016, "Deep metric learning via lifted structured feature embedding", section 6). Each sample
    searches among all others. Samples whose label occurs once do not count. Of equally near ones, those of
    other labels come first, so equal embeddings find nothing. Vectors that are not finite neither find
    others nor are found.

    Weights count searches: a resampled set searches among the same samples, as copies would find each other.
    """

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("embedding",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    k: int = Field(1, ge=1, description="number of nearest samples")

    def score(self, outputs: Array, target: Array) -> Score:
        if outputs.ndim != 2:
            raise UsageError(f"outputs of shape {list(outputs.shape)} are not one vector per sample")
        vectors = outputs.astype(np.float64)
        labels = class_indices(target, len(vectors))
        _, identity, counts = np.unique(labels, return_inverse=True, return_counts=True)
        counted = counts[identity] > 1
        if not counted.any():
            raise UsageError(
                "recall_at_k needs several samples of a label, each label occurs once",
                fix="evaluate on data with at least two samples per identity",
            )
        evidence = np.stack([_found(vectors, labels, self.k) & counted, counted], axis=1).astype(np.float64)
        return Score(self.weighted(evidence, np.ones(len(labels))), evidence=evidence)

    def weighted(self, evidence: Floats, weights: Floats) -> float:
        return weighted_ratio(evidence, weights)

    def contributions(self, evidence: Floats, samples: int) -> Contributions:
        return ratio_contributions(evidence)


def _found(vectors: Floats, labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether fewer than ``k`` of other labels are as near to a sample as the nearest of its own label."""
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    vectors = np.where(finite[:, None], vectors, 0)
    found = np.zeros(len(vectors), bool)
    rows = max(1, BLOCK // len(vectors))
    for start in range(0, len(vectors), rows):
        block = slice(start, start + rows)
        similar = vectors[block] @ vectors.T
        similar[:, ~finite] = -np.inf
        same = labels[block, None] == labels
        other = ~same
        same[np.arange(len(same)), np.arange(len(same)) + start] = False
        best = np.max(similar, axis=1, where=same, initial=-np.inf)
        nearer = np.sum(other & (similar >= best[:, None] - EQUAL), axis=1)
        found[block] = (nearer < k) & np.isfinite(best)
    return found & finite
