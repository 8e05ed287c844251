"""Mean average precision of boxes at an IoU of 0.5."""

from typing import ClassVar

from edgeopt.evaluation.metrics._coco import THRESHOLDS, CocoMetric


class Map50(CocoMetric):
    """COCO's AP50, 0..1: the mean over classes of the average precision at an IoU of 0.5."""

    title: ClassVar[str] = "mAP50"
    thresholds: ClassVar[tuple[float, ...]] = THRESHOLDS[:1]
