"""Outputs of which nothing is known."""

from typing import ClassVar

import numpy as np

from edgeopt.evaluation.tasks._differences import differences
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, PerSample, Task
from edgeopt.results import Chart, Drawing, Numbers


class Tensors(Task):
    """Numbers without a meaning: they are only compared, by signal-to-noise ratio and largest error."""

    order: ClassVar[int] = 1000
    broken_agreement: ClassVar[float | None] = None

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        return True

    def decide(self, outputs: Outputs) -> Decisions:
        arrays = [np.asarray(array, np.float64).reshape(len(array), -1) for array in outputs.arrays]
        return Decisions(np.concatenate(arrays, axis=1))

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        return Numbers.of(np.asarray(decisions.values, np.float64)[sample])

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """The differences from the source model."""
        return differences(decisions, source)
