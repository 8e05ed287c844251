"""Mean intersection over union of label maps."""

from typing import ClassVar

from edgeopt.evaluation.metrics._masks import OverlapMetric


class Miou(OverlapMetric):
    """Mean intersection over union, 0..1, of label maps ``[n, H, W]`` and masks of the same size.

    ``TP / (TP + FP + FN)`` of the pixels of the whole set, averaged over the classes that occur in masks or
    predictions (Long et al. 2015, "Fully convolutional networks for semantic segmentation", section 5).
    Pixels whose true class is ``ignore`` do not count. A pixel with scores that are not finite is a miss.
    """

    title: ClassVar[str] = "mIoU"
    weight: ClassVar[int] = 1
