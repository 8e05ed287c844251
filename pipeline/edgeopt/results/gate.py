"""Gates: conditions on results, and their verdicts."""

from typing import Literal, Protocol

from pydantic import Field

from edgeopt.results.measurement import Value

LIMITS = ("max", "min", "max_drop", "max_increase", "max_ratio")


class Judged(Protocol):
    """The part of a result that the filters of a gate match."""

    @property
    def variant(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def device(self) -> str: ...


class Gate(Value):
    """A condition on a measurement; exactly one limit is set. Empty filters mean all."""

    metric: str
    max: float | None = None
    min: float | None = None
    max_drop: float | None = None
    max_increase: float | None = None
    max_ratio: float | None = None
    variants: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    classes: tuple[str, ...] = Field((), description="judge samples of these classes only, by name or number")
    output: str | None = Field(None, description="judge this output only, by name")
    confidence: float | None = Field(None, description="confidence level at which a drop fails or passes")
    undecided: Literal["fail", "pass"] = Field(
        "fail", description="verdict when the samples are inconclusive"
    )

    @property
    def limit(self) -> tuple[str, float]:
        """The kind of the limit and its value."""
        for kind in LIMITS:
            value = getattr(self, kind)
            if value is not None:
                return kind, value
        raise ValueError("a gate without a limit")  # rejected by the recipe loader

    def __str__(self) -> str:
        kind, value = self.limit
        where = [f"{name}={','.join(names)}" for name, names in self.filters.items() if names]
        where += [f"classes={','.join(self.classes)}"] if self.classes else []
        where += [f"output={self.output}"] if self.output is not None else []
        where += [f"confidence={self.confidence:g}"] if self.confidence is not None else []
        return " ".join([self.metric, kind, f"{value:g}", *where])

    @property
    def filters(self) -> dict[str, tuple[str, ...]]:
        return {"variants": self.variants, "formats": self.formats, "devices": self.devices}

    def concerns(self, result: Judged) -> bool:
        """Whether the gate judges this result."""
        return all(
            not names or value in names
            for names, value in (
                (self.variants, result.variant),
                (self.formats, result.format),
                (self.devices, result.device),
            )
        )


class Verdict(Value):
    """The verdict of one gate on one result."""

    gate: str
    variant: str
    format: str
    device: str
    status: Literal["pass", "fail", "undecided"]
    measured: float | None = None
    limit: float
    reason: str = ""
    blocks: bool = Field(False, description="whether it makes the exit code 1")
    confidence: float | None = Field(None, description="confidence level of the gate, if set")
    bounds: tuple[float, float] | None = Field(
        None, description="lower and upper bound of the drop, each at that confidence level"
    )
    p_value: float | None = Field(None, description="exact McNemar test for the existence of a drop")
    samples_needed: int | None = Field(
        None, description="estimated number of samples that would decide, enough in most cases"
    )
