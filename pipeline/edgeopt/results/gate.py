"""Conditions on a run, and what came of them."""

from typing import Literal, Protocol

from pydantic import Field

from edgeopt.results.measurement import Value

LIMITS = ("max", "min", "max_drop", "max_increase", "max_ratio")


class Judged(Protocol):
    """What of a result decides whether a gate is about it."""

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
    confidence: float | None = Field(
        None, description="fail or pass only where the samples leave no more doubt than this"
    )
    undecided: Literal["fail", "pass"] = Field("fail", description="what too few samples come to")

    @property
    def limit(self) -> tuple[str, float]:
        """The kind of the limit and its value."""
        for kind in LIMITS:
            value = getattr(self, kind)
            if value is not None:
                return kind, value
        raise ValueError("a gate without a limit")  # the recipe loader has refused it

    def __str__(self) -> str:
        kind, value = self.limit
        where = [f"{name}={','.join(names)}" for name, names in self.filters.items() if names]
        where += [f"classes={','.join(self.classes)}"] if self.classes else []
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
    """One gate on one result."""

    gate: str
    variant: str
    format: str
    device: str
    status: Literal["pass", "fail", "undecided"]
    measured: float | None = None
    limit: float
    reason: str = ""
    blocks: bool = Field(False, description="whether the exit code is 1 because of it")
    confidence: float | None = Field(None, description="of a gate that asks how sure the drop is")
    bounds: tuple[float, float] | None = Field(
        None, description="the drop lies above the first and below the second, each with that confidence"
    )
    p_value: float | None = Field(None, description="exact McNemar test that there is a drop at all")
    samples_needed: int | None = Field(None, description="that would decide, if they go on as these")
