"""Numbers: one or several per sample, of any shape."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from edgeopt.evaluation.tasks._outputs import only, position
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, PerSample, Task


class Regression(Task):
    """The values of an output: quantities, keypoints, images. Whether two agree is a matter of degree."""

    order: ClassVar[int] = 20
    metrics: ClassVar[tuple[str, ...]] = ("mean_squared_error",)
    broken_agreement: ClassVar[float | None] = None

    output: str | None = Field(None, description="name of the output; needed if there are several")

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        return len(outputs.arrays) == 1 and isinstance(targets, np.ndarray) and targets.dtype.kind == "f"

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        return position(self.output, names, self)

    def decide(self, outputs: Outputs) -> Decisions:
        return Decisions(only(outputs, self.output, self).astype(np.float64))
