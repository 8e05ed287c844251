"""Fraction of pixels with the correct class."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.evaluation.metrics._counts import ratio_contributions, weighted_ratio
from edgeopt.evaluation.metrics._masks import no_pixels, pixels
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind


class PixelAccuracy(Metric):
    """Fraction of the pixels of the whole set with the correct class, 0..1.

    Label maps are ``[n, H, W]``, masks have the same size (Long et al. 2015, "Fully convolutional networks
    for semantic segmentation", section 5). Pixels whose true class is ``ignore`` do not count. A pixel with
    scores that are not finite is wrong.
    """

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    ignore: int | None = Field(255, description="class in the masks of pixels that do not count; null: none")

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        counts = [(np.sum(one == other), len(one)) for one, other in pixels(outputs, target, self.ignore)]
        evidence = np.array(counts, np.float64).reshape(-1, 2)
        if not evidence[:, 1].any():
            raise no_pixels(self.ignore)
        return Score(self.weighted(evidence, np.ones(len(evidence))), evidence=evidence)

    def weighted(self, evidence: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        return weighted_ratio(evidence, weights)

    def contributions(self, evidence: NDArray[np.float64], samples: int) -> Contributions:
        return ratio_contributions(evidence)
