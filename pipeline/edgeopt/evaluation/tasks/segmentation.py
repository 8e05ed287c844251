"""One class per pixel."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.tasks._equal import fraction_equal
from edgeopt.evaluation.tasks._outputs import OneOutputOfScores, are_probabilities
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Decisions, PerSample
from edgeopt.results import ByClass, Chart, Drawing, Mask

UNLABELLED = 255
"""The class in masks of pixels that do not count, as in PASCAL VOC."""


class Segmentation(OneOutputOfScores):
    """The class with the highest score at each pixel: a label map ``[n, H, W]``.

    Scores are ``[n, H, W, classes]`` or ``[n, classes, H, W]``. A single channel, or none, is a
    binary segmentation: probabilities if all values are in 0..1, otherwise logits. Integers without classes
    are the label map itself. A pixel with scores that are not finite gets -1, which agrees with nothing.
    """

    order: ClassVar[int] = 30
    metrics: ClassVar[tuple[str, ...]] = ("miou",)

    classes_axis: int | None = Field(
        None, description="axis of the classes, the batch axis being 0; default: found from the shape"
    )

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        if len(outputs.arrays) != 1 or not isinstance(targets, np.ndarray) or targets.dtype.kind not in "biu":
            return False
        (array,) = outputs.arrays
        if array.ndim not in (3, 4) or array.dtype.kind not in "biuf":
            return False
        axis = found_axis(array.shape)
        count, *size = np.delete(array.shape, [] if axis is None else axis).tolist()
        if list(targets.shape) not in ([count, *size], [count, *size, 1], [count, 1, *size]):
            return False
        # Of one channel, other labels than these are no masks, but images.
        binary = array.dtype.kind == "f" and (axis is None or array.shape[axis] == 1)
        return not binary or bool(np.isin(targets, (0, 1, 255)).all())

    def decide(self, outputs: Outputs) -> Decisions:
        array = self.only(outputs)
        axis = self._axis(array.shape)
        if axis is not None and array.shape[axis] > 1:
            scores = np.moveaxis(array, axis, -1)
            values = np.where(np.isfinite(scores).all(axis=-1), scores.argmax(axis=-1), -1)
            return Decisions(values)
        single = array if axis is None else array.squeeze(axis)
        if single.dtype.kind in "biu":
            return Decisions(single.astype(np.int64))
        scores = binary_scores(single, self.probabilities)
        values = np.where(np.isfinite(single), scores[..., 1] > scores[..., 0], -1)
        return Decisions(values.astype(np.int64))

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        return fraction_equal(decisions, source)

    def expected(self, targets: PerSample) -> Decisions | None:
        """The masks, with -1 at pixels without a label."""
        if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "biu":
            return None
        masks = targets
        if masks.ndim == 4 and 1 in masks.shape[1::2]:
            masks = masks.squeeze(1 if masks.shape[1] == 1 else 3)
        if masks.ndim != 3:
            return None
        return Decisions(np.where(masks == UNLABELLED, -1, masks.astype(np.int64)))

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        values = np.asarray(decisions.values[sample], np.int64)
        return Mask.of(values) if values.ndim == 2 else None

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """The intersection over union of every class; pixels labelled 255 do not count."""
        expected = None if targets is None else self.expected(targets)
        if expected is None or np.shape(expected.values) != np.shape(source.values):
            return ()
        before, after = (_overlaps(each.values, expected.values) for each in (source, decisions))
        classes = max(before.shape[1], after.shape[1])
        before, after = (np.pad(each, ((0, 0), (0, classes - each.shape[1]))) for each in (before, after))
        present = np.flatnonzero((before + after)[1:].any(axis=0))
        with np.errstate(invalid="ignore"):  # a class that occurs in neither is NaN
            values = [(each[0] / (each[1] + each[2] - each[0]))[present].tolist() for each in (before, after)]
        pixels = before[2, present].astype(int).tolist()
        return (ByClass.of("intersection over union", "pixels", present.tolist(), pixels, *values),)

    def _axis(self, shape: tuple[int, ...]) -> int | None:
        axis, rank = self.classes_axis, len(shape)
        if axis is None:
            if rank not in (3, 4):
                raise UsageError(
                    f"outputs of shape {list(shape)} are not scores of pixels, [n, H, W, classes] or "
                    "[n, classes, H, W]",
                    fix="name the axis of the classes: "
                    "task: {uses: segmentation, with: {classes_axis: -1}}, or another task",
                )
            return found_axis(shape)
        if rank < 3 or not -rank < axis < rank or axis == 0:
            raise UsageError(
                f"outputs of shape {list(shape)} have no classes on axis {axis}",
                fix="classes_axis counts from the batch axis, 0; the last axis is -1",
            )
        return axis % rank


def found_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the classes in ``[n, ...]`` of rank 3 or 4; None if there are none.

    The two axes that are equal are those of square images. Of others, the smaller one of axis 1 and the last.
    """
    if len(shape) == 3:
        return None
    _, first, middle, last = shape
    if (first == middle) != (middle == last):
        return 3 if first == middle else 1
    return 3 if last <= first else 1


def binary_scores(positive: Array, probabilities: bool | None = None) -> NDArray[np.float64]:
    """Scores ``[..., 2]`` of no and yes; probabilities (default: if all are in 0..1), or logits."""
    scores = positive.astype(np.float64)
    probability = are_probabilities(scores) if probabilities is None else probabilities
    return np.stack([1 - scores if probability else -scores, scores], axis=-1)


def _overlaps(predicted: PerSample, expected: PerSample) -> NDArray[np.float64]:
    """The pixels of each class that are correct, predicted and labelled ``[3, classes]``."""
    sums = np.zeros((3, 1))
    for labels, mask in zip(predicted, expected, strict=True):
        counted = np.asarray(mask) >= 0
        found, wanted = np.asarray(labels)[counted], np.asarray(mask)[counted]
        parts = (wanted[found == wanted], found[found >= 0], wanted)
        size = max(sums.shape[1], *(int(part.max(initial=-1)) + 1 for part in parts))
        sums = np.pad(sums, ((0, 0), (0, size - sums.shape[1])))
        sums += [np.bincount(part, minlength=size) for part in parts]
    return sums
