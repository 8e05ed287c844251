"""Metrics: what outputs are worth."""

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.registry import Kind as PluginKind
from edgeopt.config.registry import plugin_name
from edgeopt.model import Array
from edgeopt.plugin.base import Plugin
from edgeopt.results import Kind, MetricInfo


class Score(NamedTuple):
    """A metric's value, and one value per sample where that makes sense (their mean is the value)."""

    value: float
    per_sample: NDArray[np.float64] | None = None


class Metric(Plugin):
    """Judges outputs. ``against`` says what it needs: labels, or the source model's outputs."""

    plugin_kind: ClassVar[PluginKind] = "metrics"

    against: ClassVar[Literal["labels", "source"]] = "labels"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    kind: ClassVar[Kind] = "number"
    """How its values are shown."""
    title: ClassVar[str] = ""
    """At the head of a column; default: its name."""
    runs_code: ClassVar[bool] = False
    """Whether its options name code of the user's, which is run apart."""

    @property
    def difference_kind(self) -> Kind:
        """How a difference of two of its values is shown."""
        return "points" if self.kind == "fraction" else self.kind

    @abstractmethod
    def score(self, outputs: Array, target: Array) -> Score:
        """Judge the first output, shape ``[n, ...]``, against labels ``[n]`` or outputs ``[n, ...]``.

        Raises:
            UsageError: when the target does not fit, such as a label out of range.
        """


class NamedMetric(NamedTuple):
    """A metric under the name that reports and gates know it by."""

    name: str
    metric: Metric

    @classmethod
    def of(cls, metric: "Metric | NamedMetric") -> "NamedMetric":
        """A metric under its own name, unless it has one already."""
        return metric if isinstance(metric, NamedMetric) else cls(plugin_name(metric), metric)

    def info(self, failure: str = "") -> MetricInfo:
        """What a report says of it; ``failure``: why it could not be computed."""
        metric = self.metric
        return MetricInfo(
            name=self.name,
            kind=metric.kind,
            title=metric.title or self.name,
            unit=metric.unit,
            better="higher" if metric.higher_is_better else "lower",
            against=metric.against,
            status="failed" if failure else "ok",
            reason=failure,
        )
