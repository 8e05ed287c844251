"""Findings of a task on an artifact: what its decisions changed, as samples and as charts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import Field

from edgeopt.results.drawing import Drawing, rounded
from edgeopt.results.measurement import Kind, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SAMPLES = 12
"""Maximum number of samples of an artifact. The following limit the parts of a chart."""
MAX_CURVE = 101
MAX_DOTS = 200
MAX_BINS = 40
MAX_CLASS_ROWS = 200


class SampleChange(Value):
    """A sample with another decision than that of the source model."""

    sample: int = Field(description="index in the evaluation data")
    agreement: float | None = Field(None, description="with the decision of the source model, 0..1")
    error: float | None = Field(
        None, description="root of the mean squared difference, for tasks without agreement"
    )
    worse: bool | None = Field(
        None, description="whether it is farther from the label than the source's; null without labels"
    )
    artifact: Drawing | None = None


class Plot(Value):
    """Values of the source model and of the artifact over the same places."""

    kind: Literal["plot"] = "plot"
    style: Literal["line", "dots"] = Field(description="line: in order; dots: of single samples")
    title: str
    x_title: str
    y_title: str
    x: tuple[float, ...]
    before: tuple[float | None, ...] = Field(description="of the source model; null where undefined")
    after: tuple[float | None, ...] = Field(description="of the artifact")

    @classmethod
    def of(
        cls,
        style: Literal["line", "dots"],
        title: str,
        titles: tuple[str, str],
        x: "NDArray[np.float64]",
        before: "NDArray[np.float64]",
        after: "NDArray[np.float64]",
    ) -> Self:
        """A plot of values ``[k]``, evenly reduced to the maximum; where ``x`` is not finite, it has none."""
        import numpy as np

        x, before, after = (values[np.isfinite(x)] for values in (x, before, after))
        most = MAX_CURVE if style == "line" else MAX_DOTS
        kept = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(int))
        at, old, new = ([rounded(value) for value in values[kept].tolist()] for values in (x, before, after))
        return cls(
            style=style,
            title=title,
            x_title=titles[0],
            y_title=titles[1],
            x=tuple(value or 0.0 for value in at),
            before=tuple(old),
            after=tuple(new),
        )


class Histogram(Value):
    """How often values occur, in intervals of equal width."""

    kind: Literal["histogram"] = "histogram"
    title: str
    x_title: str
    edges: tuple[float, ...] = Field(description="limits of the intervals, one more than there are")
    before: tuple[int, ...] | None = Field(description="of the source model; null if it has none")
    after: tuple[int, ...] = Field(description="of the artifact")
    outside: int = Field(0, description="values of the artifact that are not finite or beyond the limits")

    @classmethod
    def of(
        cls,
        title: str,
        x_title: str,
        before: "NDArray[np.float64] | None",
        after: "NDArray[np.float64]",
        edges: "NDArray[np.float64] | None" = None,
    ) -> Self:
        """A histogram of values of any shape; by default, between the extremes of both models."""
        import numpy as np

        known = [values[np.isfinite(values)] for values in (before, after) if values is not None]
        if edges is None:
            every = np.concatenate([values.reshape(-1) for values in known])
            low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
            edges = np.linspace(low, high if high > low else low + 1.0, MAX_BINS + 1)
        counts = [np.histogram(values, edges)[0].tolist() for values in known]
        return cls(
            title=title,
            x_title=x_title,
            edges=tuple(rounded(edge) or 0.0 for edge in edges.tolist()),
            before=tuple(counts[0]) if before is not None else None,
            after=tuple(counts[-1]),
            outside=int(after.size - sum(counts[-1])),
        )


class ClassValue(Value):
    """A value of one class."""

    label: int
    n: int = Field(description="how often the class occurs in the labels")
    before: float | None = Field(description="of the source model; null if undefined")
    after: float | None = Field(description="of the artifact")


class ByClass(Value):
    """A value of every class, largest loss first."""

    kind: Literal["by_class"] = "by_class"
    title: str = Field(description="the value, such as 'average precision'")
    counted: str = Field(description="what ``n`` counts, such as 'objects'")
    shown: Kind = Field("fraction", description="display format of the values; higher is better")
    rows: tuple[ClassValue, ...]
    count: int = Field(description="number of all classes, of which the first ones are kept")

    @classmethod
    def of(
        cls,
        title: str,
        counted: str,
        labels: Sequence[int],
        n: Sequence[int],
        before: Sequence[float],
        after: Sequence[float],
    ) -> Self:
        """A table of all classes; values that are not finite are undefined."""
        rows = [
            ClassValue(label=label, n=number, before=rounded(old), after=rounded(new))
            for label, number, old, new in zip(labels, n, before, after, strict=True)
        ]
        rows.sort(key=lambda row: ((row.after or 0.0) - (row.before or 0.0), row.label))
        return cls(title=title, counted=counted, rows=tuple(rows[:MAX_CLASS_ROWS]), count=len(rows))


Chart: TypeAlias = Annotated[Plot | Histogram | ByClass, Field(discriminator="kind")]
"""What a report shows of the decisions for all samples."""


class Findings(Value):
    """What became of the decisions of one task."""

    head: str = Field("", description="name of the task; empty if the model has only one")
    changed: int = Field(description="number of samples with another decision than the source model's")
    worse: int | None = Field(None, description="of these, those farther from the label; null without labels")
    samples: tuple[SampleChange, ...] = Field((), description="those that changed most, the worse ones first")
    charts: tuple[Chart, ...] = ()


class Reference(Value):
    """What a changed sample is compared with, in every artifact."""

    head: str = Field("", description="as in the findings")
    sample: int
    label: Drawing | None = None
    source: Drawing | None = Field(None, description="the decision of the source model")
