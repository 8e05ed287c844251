"""Numbers: one or several per sample, of any shape."""

from typing import ClassVar

import numpy as np

from edgeopt.evaluation.tasks._outputs import OneOutput
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, PerSample


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
