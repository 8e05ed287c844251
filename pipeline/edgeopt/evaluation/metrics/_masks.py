"""Masks of the segmentation metrics, checked against the label maps of a model."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import Counts, counts
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind

Labels = NDArray[np.int64]


def pixels(outputs: PerSample, target: PerSample, ignore: int | None) -> Iterator[tuple[Labels, Labels]]:
    """The predicted and the true class of each pixel of each sample, without those whose class is ignored.

    ``outputs`` are label maps ``[n, H, W]``, or ``n`` of different sizes, in which -1 is no class. ``target``
    are masks of the same sizes; axes of length 1 do not matter.

    Raises:
        UsageError: the number of masks differs, or a mask has another size, no integers, or a negative class.
    """
    if len(outputs) != len(target):
        raise UsageError(f"{len(outputs)} outputs but {len(target)} masks")
    for index, (labels, mask) in enumerate(zip(outputs, target, strict=True)):
        _check(index, labels, mask)
        predicted, expected = labels.reshape(-1).astype(np.int64), mask.reshape(-1).astype(np.int64)
        if ignore is not None:
            counted = expected != ignore
            predicted, expected = predicted[counted], expected[counted]
        if expected.min(initial=0) < 0:
            raise UsageError(
                f"mask {index} has the class {expected.min()}: classes count from 0",
                fix=f"set the option ignore: {expected.min()} if these pixels do not count",
            )
        yield predicted, expected


def class_counts(outputs: PerSample, target: PerSample, ignore: int | None) -> Counts:
    """Counts of pixels by class.

    A pixel without a predicted class, or whose prediction is the ignored class, is a false negative only.

    Raises:
        UsageError: as ``pixels``, or no pixel counts.
    """
    entries = []
    for index, (predicted, expected) in enumerate(pixels(outputs, target, ignore)):
        hit = predicted == expected
        answered = ~hit & (predicted >= 0)
        if ignore is not None:
            answered &= predicted != ignore
        for part, labels in enumerate((expected[hit], predicted[answered], expected[~hit])):
            classes, number = np.unique(labels, return_counts=True)
            entries.append((np.full(len(classes), index), classes, part, number))
    if not any(len(classes) for _, classes, _, _ in entries):
        raise no_pixels(ignore)
    return counts(entries)


def no_pixels(ignore: int | None) -> UsageError:
    """The error for masks without any pixel that counts."""
    return UsageError(
        f"the masks have no pixel of a class other than {ignore}, which is ignored",
        fix="set the option ignore to the class of the pixels that do not count, or to null",
    )


def _check(index: int, labels: Array, mask: Array) -> None:
    if [size for size in labels.shape if size != 1] != [size for size in mask.shape if size != 1]:
        one_hot = mask.ndim == 3 and labels.shape in (mask.shape[1:], mask.shape[:-1])
        raise UsageError(
            f"mask {index} has the shape {list(mask.shape)}, but the output {list(labels.shape)}",
            fix="convert one-hot masks to one class per pixel: mask.argmax(axis)"
            if one_hot
            else "resize the masks without interpolation; or, if the output has its classes on another axis, "
            "set classes_axis of the task",
        )
    if mask.dtype.kind not in "biu":
        raise UsageError(
            f"masks are {mask.dtype}, not integers",
            fix="save the class of each pixel as an integer: mask.astype('uint8')",
        )


class OverlapMetric(Metric):
    """Base of the metrics of the overlap of masks, from the counts of the whole set."""

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"
    weight: ClassVar[int]
    """How often a pixel of a class counts that is found, in numerator and denominator."""

    ignore: int | None = Field(255, description="class in the masks of pixels that do not count; null: none")

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        evidence = class_counts(outputs, target, self.ignore)
        return Score(self.weighted(evidence, np.ones(len(outputs))), evidence=evidence)

    def weighted(self, evidence: Counts, weights: NDArray[np.float64]) -> float:
        return evidence.overlap(weights, self.weight)

    def contributions(self, evidence: Counts, samples: int) -> Contributions:
        return evidence.overlap_contributions(samples, self.weight)
