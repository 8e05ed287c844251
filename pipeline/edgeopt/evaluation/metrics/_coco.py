"""Mean average precision of boxes as defined by COCO, for any weights of the images.

The definition is that of pycocotools (Lin et al. 2014, "Microsoft COCO: Common Objects in Context"): 101
recall values, at most 100 detections per image and class, objects of all sizes, crowds as regions that
neither count nor are missed, and only classes with ground truth. Detections are matched image by image;
the precision of a set of images is computed from the matches alone, so resampled sets need no new matching.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.boxes import areas, iou
from edgeopt.evaluation.metrics._precision_recall import (
    ClassEvidence,
    average_precision,
    image_contributions,
)
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind

MAX_DETECTIONS = 100
"""Most detections per image and class."""
MAX_AREA = 1e10
"""Largest area of the size range 'all', in square pixels."""
THRESHOLDS = (*(0.5 + index * ((0.95 - 0.5) / 9) for index in range(9)), 0.95)  # as by numpy.linspace
"""IoU from which a detection matches an object."""
COLUMNS = "x1, y1, x2, y2 in pixels, class index, and 1 for regions that do not count or 0"

Floats: TypeAlias = NDArray[np.float64]


class CocoMetric(Metric):
    """The mean over classes and IoU thresholds of the average precision, 0..1."""

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"
    thresholds: ClassVar[tuple[float, ...]]

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        evidence = match(outputs, target, self.thresholds)
        if not evidence:
            raise UsageError(
                "no sample has an object, so the average precision is undefined",
                fix="evaluate on data with labelled objects",
            )
        return Score(average_precision(evidence, np.ones(len(evidence[0].truths))), evidence=evidence)

    def weighted(self, evidence: Any, weights: Floats) -> float:
        """As `Metric.weighted`; NaN if no image of positive weight has an object.

        Detections of the same score in one image and class are counted in their order, each ``weights[i]``
        times; pycocotools would alternate them if the image were repeated.
        """
        return average_precision(evidence, weights)

    def contributions(self, evidence: tuple[ClassEvidence, ...], samples: int) -> Contributions:
        return image_contributions(evidence)


def match(
    detections: PerSample, targets: PerSample, thresholds: tuple[float, ...]
) -> tuple[ClassEvidence, ...]:
    """Match detections ``[m, 6]`` of each image (box, score, class) with its labels ``[k, 6]``.

    Classes without objects are left out.

    Raises:
        UsageError: the numbers of images differ, or a label or detection is not of this form.
    """
    truths = list(_checked_targets(targets))
    if len(detections) != len(truths):
        raise UsageError(f"{len(detections)} outputs but {len(truths)} labels")
    if not truths:
        return ()
    limits = np.minimum(np.asarray(thresholds), 1 - 1e-10)
    best = [_best(_checked_detections(each, index)) for index, each in enumerate(detections)]
    matches = [_match_image(boxes, labels, limits) for boxes, labels in zip(best, truths, strict=True)]
    correct, ignored = (np.concatenate(each, axis=1) for each in zip(*matches, strict=True))
    found, images = _joined(best)
    objects, image_of = _joined(truths)
    counted = objects[:, 5] == 0
    evidence = []
    for category in np.unique(objects[counted, 4]):
        mine = np.flatnonzero(found[:, 5] == category)
        mine = mine[np.argsort(-found[mine, 4], kind="stable")]
        counts = np.bincount(image_of[counted & (objects[:, 4] == category)], minlength=len(truths))
        evidence.append(
            ClassEvidence(
                int(category), found[mine, 4], images[mine], correct[:, mine], ignored[:, mine], counts
            )
        )
    return tuple(evidence)


def _joined(rows: list[Floats]) -> tuple[Floats, NDArray[np.int64]]:
    """The rows of all images, and the image of each row."""
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(each) for each in rows])


def _best(detections: Floats) -> Floats:
    """The detections of one image by decreasing score, at most ``MAX_DETECTIONS`` of a class."""
    detections = detections[np.argsort(-detections[:, 4], kind="stable")]
    if len(detections) <= MAX_DETECTIONS:
        return detections
    keep = [np.flatnonzero(detections[:, 5] == each)[:MAX_DETECTIONS] for each in np.unique(detections[:, 5])]
    return detections[np.sort(np.concatenate(keep))]


def _match_image(
    detections: Floats, objects: Floats, limits: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections ``[d, 6]``, by decreasing score, match an object, and which do not count: ``[t, d]``.

    A detection takes the free object of its class of the largest IoU, the last of equal ones. If there is
    none, it may fall into a crowd, which takes any number of them.
    """
    crowd = objects[:, 5] == 1
    overlap = iou(detections[:, :4], objects[:, :4], crowd)
    overlap[detections[:, None, 5] != objects[:, 4]] = 0.0
    single = overlap[:, ~crowd]
    correct = np.zeros((len(limits), len(detections)), np.bool_)
    if single.size:
        free = np.ones((len(limits), single.shape[1]), np.bool_)
        every, last = np.arange(len(limits)), single.shape[1] - 1
        for at in np.flatnonzero(single.max(axis=1) >= limits.min()):
            candidates = np.where(free, single[at], -1.0)
            best = last - candidates[:, ::-1].argmax(axis=1)
            taken = candidates[every, best] >= limits
            correct[taken, at] = True
            free[every[taken], best[taken]] = False
    crowded = overlap[:, crowd].max(axis=1, initial=0.0) >= limits[:, None]
    area = areas(detections)
    return correct, ~correct & (crowded | (area < 0) | (area > MAX_AREA))


def _checked_targets(targets: PerSample) -> Iterator[Floats]:
    """The labels of each image ``[k, 6]``."""
    if isinstance(targets, np.ndarray) and (targets.ndim != 3 or targets.shape[2] != 6):
        raise UsageError(
            f"labels of shape {list(targets.shape)} are not boxes, one array [k, 6] per sample",
            fix=f"label each sample with its boxes: {COLUMNS}",
        )
    for index, each in enumerate(targets):
        array = np.asarray(each)
        if array.ndim != 2 or array.shape[1] != 6 or array.dtype.kind not in "biuf":
            kind = "" if array.dtype.kind in "biuf" else f" and dtype {array.dtype}"
            raise UsageError(
                f"the label of sample {index} has shape {list(array.shape)}{kind}, not [k, 6]",
                fix=f"label each sample with its boxes: {COLUMNS}",
            )
        boxes = array.astype(np.float64)
        for row in np.flatnonzero(_mislabelled(boxes)):
            raise UsageError(
                f"box {row} of sample {index} is not {COLUMNS}: {', '.join(f'{x:g}' for x in boxes[row])}",
                fix="fix or remove the label",
            )
        for row in np.flatnonzero((boxes[:, 2:4] <= boxes[:, :2]).any(axis=1)):
            raise UsageError(
                f"box {row} of sample {index} is empty: x1, y1, x2, y2 = "
                f"{', '.join(f'{x:g}' for x in boxes[row, :4])}",
                fix="fix or remove the label: x2 must be larger than x1, and y2 than y1",
            )
        yield boxes


def _mislabelled(boxes: Floats) -> NDArray[np.bool_]:
    category, crowd = boxes[:, 4], boxes[:, 5]
    with np.errstate(invalid="ignore"):
        index = (category >= 0) & (category == np.rint(category))
    result: NDArray[np.bool_] = ~(np.isfinite(boxes).all(axis=1) & index & np.isin(crowd, (0, 1)))
    return result


def _checked_detections(detections: Any, index: int) -> Floats:
    """The detections of one image ``[m, 6]`` that are finite."""
    rows = np.asarray(detections, np.float64)
    if rows.ndim != 2 or rows.shape[1] != 6:
        raise UsageError(
            f"the detections of sample {index} have shape {list(rows.shape)}, not [m, 6]: x1, y1, x2, y2, "
            "score, class",
            fix="use the task 'detection', or one with the same decisions",
        )
    return rows[np.isfinite(rows).all(axis=1)]
