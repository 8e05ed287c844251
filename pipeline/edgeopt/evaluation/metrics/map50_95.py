"""Mean average precision of boxes at IoUs from 0.5 to 0.95."""

from typing import ClassVar

from edgeopt.evaluation.metrics._coco import THRESHOLDS, CocoMetric


class Map5095(CocoMetric):
    """COCO's AP, 0..1: the mean over classes and IoUs of 0.5, 0.55, ..., 0.95 of the average precision."""

    title: ClassVar[str] = "mAP50-95"
    thresholds: ClassVar[tuple[float, ...]] = THRESHOLDS
