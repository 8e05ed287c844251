"""A variant that is found by searching: limits, objectives, what may vary, and the budget."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from edgeopt.config.nearest import nearest
from edgeopt.config.settings import Settings
from edgeopt.plugin import NamedMetric
from edgeopt.recipe.document import GatePart, Names
from edgeopt.results import MEASUREMENTS, Gate

OBJECTIVES = tuple(
    name
    for name, shown in MEASUREMENTS.items()
    if shown.role == "cost" and shown.better == "lower" and (not shown.volatile or name == "latency_ratio")
)
"""What a search may minimize. Of the timed measurements, only the ratio is comparable between runs."""
DIMENSIONS: dict[str, Any] = {
    "quantize": "int8",
    "bits": 8,
    "prune": 0,
    "finetune": False,
    "equalize": False,
    "rounding": False,
    "bias_correction": False,
    "calibrator": "",
    "per_channel": True,
    "coarsen": False,
}
"""What may vary besides the format, and the value of what does not; '': the default of the format."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


Choices = Annotated[tuple[Any, ...], BeforeValidator(_as_list), Field(min_length=1)]


class SearchBudget(Settings):
    """Limits on a search; the one that is reached first ends it."""

    trials: int = Field(40, ge=1, le=100_000, description="most candidates to build and measure")
    hours: float = Field(2.0, gt=0, le=744, description="time limit, that of interrupted attempts included")
    batch: int = Field(
        2,
        ge=1,
        le=256,
        description="candidates that are proposed, built and measured together: on a cluster, one or two per "
        "node; a larger batch learns less from each trial",
    )


class SearchPart(Settings):
    """A variant that is found by searching."""

    under: tuple[GatePart, ...] = Field(
        (),
        description="limits that the result must meet, written as gates; default: the first metric that is a "
        "fraction may drop by 0.01, without one at least 0.99 of the decisions agree",
    )
    minimize: Names = Field(
        ("size_bytes",), description="measurements to minimize; of several, the first one decides"
    )
    over: dict[str, Choices] = Field(
        {}, description="what varies, and its values; default: all that the model and its formats can do"
    )
    budget: SearchBudget = SearchBudget()
    seed: int = Field(0, ge=0, description="seed of the sampler")


class Search(NamedTuple):
    """A search with its limits resolved."""

    limits: tuple[Gate, ...]
    part: SearchPart

    @property
    def metrics(self) -> set[str]:
        """All measurements that it reads."""
        return {*self.part.minimize, *(gate.metric for gate in self.limits)}


def refused_objectives(part: SearchPart, metrics: Sequence[str]) -> dict[int, str]:
    """The measurements that a search may not minimize, by their position, with the reason."""
    reasons: dict[int, str] = {}
    for index, name in enumerate(part.minimize):
        if name in metrics:
            reasons[index] = f"{name} is a metric of accuracy: limit it with under: [{{metric: {name}, ...}}]"
        elif name in MEASUREMENTS and MEASUREMENTS[name].volatile and name not in OBJECTIVES:
            reasons[index] = f"{name} is timed and differs between runs: minimize latency_ratio"
        elif name not in OBJECTIVES:
            reasons[index] = f"{name!r} cannot be minimized{nearest(name, OBJECTIVES)}"
    return reasons


def usual_limit(metrics: Sequence[NamedMetric]) -> GatePart:
    """The limit of a search that names none: without one, the smallest file would be an empty one."""
    for name, metric, _ in metrics:
        if metric.against == "labels" and metric.kind == "fraction":
            return GatePart(metric=name, max_drop=0.01)
    return GatePart(metric="agreement", min=0.99)
