"""The outcome of a search: every trial, the Pareto front, and what the evaluation data say about it."""

from typing import Any, Literal

from pydantic import Field

from edgeopt.results.measurement import Value

SCHEMA = 1
RESULT, PAGE = "search.json", "search.html"


class Tried(Value):
    """One candidate and what was measured of it on the selection data."""

    number: int
    format: str
    options: dict[str, Any] = Field(description="the variant, as in 'optimize' of a recipe")
    point: tuple[int, ...] = Field(description="index of the value in each dimension")
    status: Literal["complete", "stopped", "failed"] = Field(
        description="stopped: the first samples showed that it exceeds a limit, or that it is broken"
    )
    reason: str = ""
    samples: int = 0
    objectives: dict[str, float] = Field({}, description="what is minimized: costs, loss of accuracy, noise")
    excess: dict[str, float] = Field(
        {}, description="by how much each limit is exceeded, in its unit; at most 0: it holds"
    )
    measurements: dict[str, float] = Field({}, description="the worst of all devices")
    seconds: float = 0.0
    place: Literal["best", "front", "dominated", "over a limit", "not measured"] = "not measured"

    @property
    def holds(self) -> bool:
        """Whether it was measured completely and meets all limits."""
        # A drop is a sum of fractions: 0.03 computed in floating point may exceed 0.03.
        return self.status == "complete" and all(value <= 1e-9 for value in self.excess.values())


class Judged(Value):
    """One variant of the front, built as an ordinary variant and judged on the evaluation data."""

    variant: str
    trial: int
    format: str
    selection: dict[str, float] = Field(description="accuracy drops on the selection data")
    evaluation: dict[str, float] = Field(description="the same on the evaluation data")
    optimism: dict[str, float] = Field(description="how much larger the drop is on the evaluation data")
    passed: bool = Field(description="whether it meets the limits on the evaluation data, too")


class SearchResult(Value):
    """The outcome of a search, as written to ``search.json``."""

    schema_version: int = Field(SCHEMA, alias="schema")
    recipe: str
    variant: str
    selection: str = Field(description="the data that candidates were selected on")
    samples: int
    limits: tuple[str, ...]
    minimize: tuple[str, ...]
    loss: str = Field(description="the loss of accuracy that was minimized besides")
    dimensions: dict[str, tuple[Any, ...]]
    points: int = Field(description="size of the space")
    trials: tuple[Tried, ...]
    stopped: str = Field(description="why the search ended")
    closest: str = Field("", description="if no trial meets all limits: the closest one, and what it exceeds")
    notes: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()

    @property
    def best(self) -> Tried | None:
        """The trial of the front with the smallest first objective; None if no trial meets all limits."""
        return next((each for each in self.trials if each.place == "best"), None)

    @property
    def front(self) -> tuple[Tried, ...]:
        """The best trial, then the rest of the front by number."""
        places = ("best", "front")
        return tuple(each for place in places for each in self.trials if each.place == place)
