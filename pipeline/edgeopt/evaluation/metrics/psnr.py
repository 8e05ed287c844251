"""Peak signal-to-noise ratio of images."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from edgeopt.evaluation.metrics._numbers import paired, squared_errors
from edgeopt.plugin import Metric, PerSample, Reading, Score
from edgeopt.results import Kind

LIMIT_DB = 100.0


class Psnr(Metric):
    """``10 log10(data_range^2 / MSE)`` of each image ``[n, ...]``, averaged over images, in dB.

    As in ITU-T J.340 with ``data_range`` as the peak. Values are limited to 100 dB, that of identical images,
    and to -100 dB, that of outputs that are not finite.
    """

    kind: ClassVar[Kind] = "decibel"
    title: ClassVar[str] = "PSNR"
    unit: ClassVar[str] = "dB"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    reads: ClassVar[Reading] = "values"

    data_range: float = Field(gt=0, description="largest minus smallest possible value: 1, or 255")

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        errors = squared_errors(*paired(outputs, target)) / self.data_range**2
        decibels = -10 * np.log10(errors.clip(10 ** (-LIMIT_DB / 10), 10 ** (LIMIT_DB / 10)))
        return Score(float(decibels.mean()), decibels)
