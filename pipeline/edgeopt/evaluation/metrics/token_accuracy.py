"""Fraction of tokens that are correct."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import ratio_contributions
from edgeopt.evaluation.metrics._tokens import rate, step_targets
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind


class TokenAccuracy(Metric):
    """Fraction of correct tokens, 0..1, over all steps of all samples that count.

    Labels are tokens ``[n, steps]``. Evidence is ``[n, 2]``: correct and counted tokens of each sample.
    """

    kind: ClassVar[Kind] = "fraction"
    tasks: ClassVar[tuple[str, ...]] = ("sequence",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    ignore: int = Field(-100, description="label of steps that do not count, such as padding")

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        if not isinstance(outputs, np.ndarray) or outputs.ndim != 2:
            raise UsageError(
                "token_accuracy needs one token per step, but the decoded sequences have their own lengths",
                fix="use wer or cer for CTC",
            )
        tokens, counts = step_targets(target, outputs.shape, self.ignore)
        correct = (outputs == tokens) & counts
        evidence = np.stack([correct.sum(axis=1), counts.sum(axis=1)], axis=1).astype(np.float64)
        return Score(rate(evidence, np.ones(len(evidence))), evidence=evidence)

    def weighted(self, evidence: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        return rate(evidence, weights)

    def contributions(self, evidence: NDArray[np.float64], samples: int) -> Contributions:
        return ratio_contributions(evidence)
