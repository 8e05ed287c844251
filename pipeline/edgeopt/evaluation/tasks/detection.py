"""Boxes of objects, each with a class and a score."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from edgeopt.config.registry import plugin_name
from edgeopt.errors import UsageError
from edgeopt.evaluation.boxes import BoxFormat, corners, iou
from edgeopt.evaluation.metrics._coco import match
from edgeopt.evaluation.metrics._precision_recall import ClassEvidence, precision, recalls
from edgeopt.evaluation.tasks._outputs import position
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Decisions, PerSample, Task
from edgeopt.results import Boxes, ByClass, Chart, Drawing, Plot

KNOWN: Mapping[str, tuple[str, ...]] = {
    "boxes": ("boxes",),
    "scores": ("scores",),
    "classes": ("classes", "labels"),
    "count": ("count", "num_detections"),
}
"""Names of outputs that are found without an option."""
AGREE = 0.5
"""IoU from which two boxes are of the same object."""


class Detection(Task):
    """The boxes above a threshold, by decreasing score: x1, y1, x2, y2 in pixels, score, class.

    The boxes have passed non-maximum suppression, in the model or in a decoder. They are read from outputs
    ``boxes [n, k, 4]`` and ``scores``: ``[n, k]`` with ``classes [n, k]``, or ``[n, k, classes]``, of which
    each box gets the best (and ``classes`` is not read). ``count [n]`` says how many boxes of a sample are
    valid. Without scores, the boxes are ``[n, k, 6]``: corners, score, class.
    """

    order: ClassVar[int] = 5
    metrics: ClassVar[tuple[str, ...]] = ("map50_95",)
    broken_agreement: ClassVar[float | None] = 0.5

    boxes: str | None = Field(
        None, description="name of the output of boxes; default: 'boxes', or the only one"
    )
    scores: str | None = Field(None, description="name of the output of scores; default: 'scores'")
    classes: str | None = Field(
        None, description="name of the output of class indices; default: 'classes' or 'labels'"
    )
    count: str | None = Field(
        None,
        description="name of the output with the number of valid boxes; default: 'count' or 'num_detections'",
    )
    format: BoxFormat = Field("xyxy", description="order of the four coordinates; c is the centre")
    size: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None,
        description="height and width in pixels, for coordinates relative to them; default: pixels",
    )
    threshold: float = Field(0.001, description="lowest score")
    limit: PositiveInt = Field(100, description="most boxes per sample")
    confident: float = Field(
        0.3, description="lowest score of the boxes that are compared with those of the source model"
    )

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        if targets is None or not _are_boxes(targets) or any(array.ndim == 0 for array in outputs.arrays):
            return False
        try:
            cls().decide(Outputs([array[:1] for array in outputs.arrays], outputs.names))
        except UsageError:
            return False
        return True

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted(self._find(names).values()))

    def decide(self, outputs: Outputs) -> Decisions:
        arrays = {part: outputs.arrays[at] for part, at in self._find(outputs.all_names()).items()}
        boxes, scores, classes = _parts(arrays) if "scores" in arrays else _columns(arrays["boxes"])
        with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite are dropped
            boxes = corners(boxes, self.format)
            if self.size is not None:
                boxes = boxes * np.tile(self.size[::-1], 2)
        rows = np.concatenate([boxes, scores[..., None], np.rint(classes)[..., None]], axis=2)
        # A negative class is padding.
        valid = np.isfinite(rows).all(axis=2) & (rows[..., 4] >= self.threshold) & (rows[..., 5] >= 0)
        if "count" in arrays:
            valid &= np.arange(rows.shape[1]) < _counts(arrays["count"], len(rows))[:, None]
        return Decisions([self._best(each[ok]) for each, ok in zip(rows, valid, strict=True)])

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        pairs = zip(decisions.values, source.values, strict=True)
        return np.array([self._f_measure(one, other) for one, other in pairs], np.float64)

    def expected(self, targets: PerSample) -> Decisions | None:
        """The labelled boxes without crowds. Their score is infinite, as they are certain."""
        if not len(targets) or not _are_boxes(targets):
            return None
        rows = [np.asarray(each, np.float64) for each in targets]
        return Decisions([np.insert(each[each[:, 5] == 0][:, :5], 4, np.inf, axis=1) for each in rows])

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        """The confident boxes."""
        rows = np.asarray(decisions.values[sample], np.float64)
        rows = rows[rows[:, 4] >= self.confident]
        return Boxes.of(rows[:, :4], rows[:, 5].astype(int).tolist(), rows[:, 4].tolist())

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """Precision against recall, as the mean over classes, and the average precision of every class."""
        if targets is None:
            return ()
        found = [match(each.values, targets, (AGREE,)) for each in (source, decisions)]
        before, after = map(_precisions, found)
        if not len(before):
            return ()
        at = f"at an IoU of {AGREE:g}"
        curve = Plot.of(
            "line",
            f"precision and recall {at}, mean over classes",
            ("recall", "precision"),
            recalls(),
            before.mean(axis=0),
            after.mean(axis=0),
        )
        labels, objects = zip(*((one.category, int(one.truths.sum())) for one in found[0]), strict=True)
        values = [each.mean(axis=1).tolist() for each in (before, after)]
        return curve, ByClass.of(f"average precision {at}", "objects", labels, objects, *values)

    def _find(self, names: Sequence[str]) -> dict[str, int]:
        """The position of each part that the outputs have."""
        found = {}
        for part, known in KNOWN.items():
            name = getattr(self, part) or next((each for each in known if each in names), None)
            if name is not None:
                (found[part],) = position(name, names, self)
        if "scores" not in found and "classes" not in found and len(names) == 1:
            found.setdefault("boxes", 0)
        missing = [part for part in ("boxes", "scores") if part not in found]
        if missing and (missing != ["scores"] or "classes" in found):
            listed = ", ".join(map(repr, names))
            options = ", ".join(f"{part}: NAME" for part in missing)
            raise UsageError(
                f"the task {plugin_name(self)} reads boxes and scores, but no output is called "
                f"{' or '.join(map(repr, missing))}: the outputs are {listed}",
                fix=f"name them: task: {{uses: {plugin_name(self)}, with: {{{options}}}}}, "
                "or decode raw heads with a decoder",
            )
        return found

    def _best(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        order = np.argsort(-rows[:, 4], kind="stable")
        return rows[order[: self.limit]]

    def _f_measure(self, one: Array, other: Array) -> float:
        """Harmonic mean of precision and recall of the confident boxes; 1 if both have none."""
        boxes, others = (np.asarray(each, np.float64) for each in (one, other))
        boxes, others = boxes[boxes[:, 4] >= self.confident], others[others[:, 4] >= self.confident]
        if not len(boxes) and not len(others):
            return 1.0
        overlap = np.where(boxes[:, None, 5] == others[:, 5], iou(boxes[:, :4], others[:, :4]), 0.0)
        return 2 * _matches(overlap) / (len(boxes) + len(others))


def _precisions(evidence: tuple[ClassEvidence, ...]) -> NDArray[np.float64]:
    """The precision of each class at each recall ``[classes, 101]``."""
    each = [precision(one, np.ones(len(one.truths))) for one in evidence]
    return np.array([values[0] for values in each if values is not None], np.float64)


def _are_boxes(targets: PerSample) -> bool:
    # A list may be long: its first arrays say what it is.
    some = [np.asarray(each) for each in targets[:10]]
    return bool(some) and all(each.ndim == 2 and each.shape[1] == 6 for each in some)


def _columns(array: Array) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Boxes ``[n, k, 4]``, scores ``[n, k]`` and classes ``[n, k]`` of one output."""
    rows = np.asarray(array, np.float64)
    if rows.ndim != 3 or rows.shape[2] != 6:
        raise UsageError(
            f"the output of boxes has shape {list(array.shape)}; without an output of scores, it must be "
            "[n, k, 6]: four coordinates, score, class",
            fix="name the outputs 'boxes' and 'scores' of the task, or decode raw heads with a decoder",
        )
    return rows[..., :4], rows[..., 4], rows[..., 5]


def _parts(
    arrays: Mapping[str, Array],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The same of one output each."""
    boxes, scores = (np.asarray(arrays[part], np.float64) for part in ("boxes", "scores"))
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise UsageError(
            f"the output of boxes has shape {list(boxes.shape)}, not [n, k, 4]",
            fix="name the output of boxes: task: {uses: detection, with: {boxes: NAME}}",
        )
    if scores.ndim not in (2, 3) or scores.shape[:2] != boxes.shape[:2] or 0 in scores.shape[2:]:
        n, k = boxes.shape[:2]
        raise UsageError(
            f"the output of scores has shape {list(scores.shape)}; for boxes of shape {list(boxes.shape)}, "
            f"it must be [{n}, {k}] or [{n}, {k}, classes]",
            fix="name the output of scores: task: {uses: detection, with: {scores: NAME}}",
        )
    if scores.ndim == 3:
        return boxes, scores.max(axis=2), scores.argmax(axis=2).astype(np.float64)
    if "classes" not in arrays:
        raise UsageError(
            f"scores of shape {list(scores.shape)} do not say the class of a box, and no output is called "
            "'classes' or 'labels'",
            fix="name the output of class indices: task: {uses: detection, with: {classes: NAME}}",
        )
    classes = np.asarray(arrays["classes"], np.float64)
    if classes.shape != scores.shape:
        raise UsageError(
            f"the output of classes has shape {list(classes.shape)}, the scores have {list(scores.shape)}",
            fix="name the output of class indices: task: {uses: detection, with: {classes: NAME}}",
        )
    return boxes, scores, classes


def _counts(array: Array, samples: int) -> NDArray[np.float64]:
    if array.size != samples:
        raise UsageError(
            f"the output of the number of boxes has shape {list(array.shape)}, not [{samples}]",
            fix="name another output: task: {uses: detection, with: {count: NAME}}",
        )
    return np.nan_to_num(np.rint(np.asarray(array, np.float64).reshape(samples)), nan=0.0)


def _matches(overlap: NDArray[np.float64]) -> int:
    """Pairs ``[m, k]`` of an overlap of at least ``AGREE``, taken greedily, the largest overlap first."""
    overlap = overlap.copy()
    count = 0
    while overlap.size:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        if overlap[row, column] < AGREE:
            break
        count += 1
        overlap[row], overlap[:, column] = 0.0, 0.0
    return count
