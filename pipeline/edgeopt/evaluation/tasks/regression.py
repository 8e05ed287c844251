"""Numbers: one or several per sample, of any shape."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.tasks._differences import differences
from edgeopt.evaluation.tasks._outputs import OneOutput
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, PerSample
from edgeopt.results import Chart, Drawing, Histogram, Numbers, Picture, Plot, Points

MIN_SIDE = 8
"""Smallest side of values that are drawn as an image."""
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Usual ranges of the values of images."""
LEEWAY, TAIL = 0.5, 5.0
"""How far a range may be exceeded, relative to its length, and by more than that by how many percent."""


class Regression(OneOutput):
    """The values of an output: quantities, keypoints, images. Whether two agree is a matter of degree."""

    order: ClassVar[int] = 20
    metrics: ClassVar[tuple[str, ...]] = ("mean_squared_error",)
    broken_agreement: ClassVar[float | None] = None

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        return len(outputs.arrays) == 1 and isinstance(targets, np.ndarray) and targets.dtype.kind == "f"

    def decide(self, outputs: Outputs) -> Decisions:
        return Decisions(self.only(outputs).astype(np.float64))

    def expected(self, targets: PerSample) -> Decisions | None:
        if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "biuf":
            return None
        return Decisions(targets.astype(np.float64))

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        """Values ``[k, 2]`` are drawn as places x, y, those of the shape of an image as one."""
        values = np.asarray(decisions.values[sample], np.float64)
        if values.ndim == 2 and values.shape[1] == 2:
            return Points.of(values)
        image = _image(values)
        return Numbers.of(values) if image is None else Picture.of(image, *_range(image))

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """The errors against the labels, and the values against the labels if there is one per sample."""
        expected = None if targets is None else self.expected(targets)
        if expected is None or np.shape(expected.values) != np.shape(source.values):
            return differences(decisions, source)
        label, before, after = (np.asarray(each.values, np.float64) for each in (expected, source, decisions))
        errors = Histogram.of("errors: value minus label", "error", before - label, after - label)
        if label.size != len(label):
            return (errors,)
        values = (each.reshape(-1) for each in (label, before, after))
        return Plot.of("dots", "values against labels", ("label", "value"), *values), errors


def _image(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Values as ``[height, width, 1 or 3]``; None if they have no such shape."""
    if values.ndim == 2:
        values = values[..., np.newaxis]
    elif values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] not in (1, 3) or min(values.shape[:2]) < MIN_SIDE:
        return None
    return values


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Black and white: of the usual range that the values are in, else their own."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return RANGES[0]
    lowest, highest = np.percentile(finite, (TAIL, 100 - TAIL)).tolist()
    for low, high in RANGES:
        leeway = LEEWAY * (high - low)
        if low - leeway <= lowest and highest <= high + leeway:
            return low, high
    return float(finite.min()), float(finite.max())
