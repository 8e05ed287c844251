"""Dice coefficient of label maps."""

from typing import ClassVar

from edgeopt.evaluation.metrics._masks import OverlapMetric


class Dice(OverlapMetric):
    """Dice coefficient, 0..1, of label maps ``[n, H, W]`` and masks of the same size.

    ``2 TP / (2 TP + FP + FN)`` of the pixels of the whole set, averaged over the classes that occur in masks
    or predictions (Dice 1945, "Measures of the amount of ecologic association between species"). Pixels whose
    true class is ``ignore`` do not count. A pixel with scores that are not finite is a miss.
    """

    title: ClassVar[str] = "Dice"
    weight: ClassVar[int] = 2
