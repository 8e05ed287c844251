"""Percentage of correct keypoints."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import ratio_contributions, weighted_ratio
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, Reading, Score
from edgeopt.results import Kind

Floats = NDArray[np.float64]


class Pck(Metric):
    """Fraction of keypoints within ``alpha * reference`` of the true place, 0..1, averaged over samples.

    PCK of Yang and Ramanan 2013, "Articulated human detection with flexible mixtures of parts", with one
    reference length for all samples. Keypoints are ``[n, k, 2]`` or ``[n, 2 k]``, x and y of each in pixels.
    Those with a negative label are not visible and do not count, nor do samples without visible ones. A
    keypoint that is not finite is wrong.
    """

    kind: ClassVar[Kind] = "fraction"
    title: ClassVar[str] = "PCK"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    reads: ClassVar[Reading] = "values"

    alpha: float = Field(0.2, gt=0, description="largest distance as a fraction of the reference length")
    reference: float = Field(gt=0, description="reference length in pixels, such as the size of a head")

    def score(self, outputs: Array, target: Array) -> Score:
        if len(outputs) != len(target):
            raise UsageError(f"{len(outputs)} outputs but {len(target)} labels")
        points, expected = _points(outputs, "outputs"), _points(target, "labels")
        if points.shape != expected.shape:
            raise UsageError(
                f"the outputs have {points.shape[1]} keypoints, but the labels {expected.shape[1]}",
                fix="provide labels for all keypoints of the model; negative ones for those to leave out",
            )
        visible = (expected >= 0).all(axis=2)
        distances = np.hypot(*np.moveaxis(points - expected, 2, 0))
        correct = (distances <= self.alpha * self.reference) & visible
        counts = visible.sum(axis=1)
        if not counts.any():
            raise UsageError("no label is a visible keypoint", fix="keypoints have coordinates of at least 0")
        fractions = correct.sum(axis=1) / np.maximum(counts, 1)
        if counts.all():
            return Score(float(fractions.mean()), fractions)
        evidence = np.stack([fractions, counts > 0], axis=1)
        return Score(self.weighted(evidence, np.ones(len(evidence))), evidence=evidence)

    def weighted(self, evidence: Floats, weights: Floats) -> float:
        return weighted_ratio(evidence, weights)

    def contributions(self, evidence: Floats, samples: int) -> Contributions:
        return ratio_contributions(evidence)


def _points(array: Array, what: str) -> Floats:
    if array.ndim == 2 and array.shape[1] % 2 == 0:
        array = array.reshape(len(array), -1, 2)
    if array.ndim != 3 or array.shape[2] != 2:
        raise UsageError(
            f"{what} of shape {list(array.shape)} are not keypoints, [n, k, 2] or [n, 2 k]",
            fix="pck compares x and y of each keypoint, without a confidence",
        )
    return array.astype(np.float64)
