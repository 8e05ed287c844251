"""How far the decisions are those of the source model."""

from typing import Any, ClassVar, Literal

from edgeopt.plugin import Metric, Reading, Score
from edgeopt.results import Kind


class Agreement(Metric):
    """Mean agreement with the source model's decisions, 0..1, as the task defines it; needs no labels.

    For a classification it is the fraction of samples with the same class. A task whose decisions only
    differ by degrees, such as a regression, has none. Outputs that are not finite never agree.
    """

    kind: ClassVar[Kind] = "fraction"
    against: ClassVar[Literal["labels", "source"]] = "source"
    reads: ClassVar[Reading] = "decisions"

    def score(self, outputs: Any, target: Any) -> Score:
        """``outputs`` is the agreement of each sample ``[n]``; there is no target."""
        return Score(float(outputs.mean()), outputs)
