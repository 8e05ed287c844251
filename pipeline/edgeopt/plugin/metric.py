"""Metrics: scores of model outputs."""

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
    """A metric's value and, for metrics that are means over samples, the value of each sample."""

    value: float
    per_sample: NDArray[np.float64] | None = None


class Metric(Plugin):
    """Scores outputs. ``against`` is its reference: labels, or the outputs of the source model."""

    plugin_kind: ClassVar[PluginKind] = "metrics"

    against: ClassVar[Literal["labels", "source"]] = "labels"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    kind: ClassVar[Kind] = "number"
    """Display format of its values."""
    title: ClassVar[str] = ""
    """Column title; default: its name."""
    runs_code: ClassVar[bool] = False
    """Whether its options refer to user code, which is run in a separate process."""

    @property
    def difference_kind(self) -> Kind:
        """Display format of a difference between two of its values."""
        return "points" if self.kind == "fraction" else self.kind

    @abstractmethod
    def score(self, outputs: Array, target: Array) -> Score:
        """Score the first output, of shape ``[n, ...]``, against labels ``[n]`` or outputs ``[n, ...]``.

        Raises:
            UsageError: the target does not match the outputs, such as a label out of range.
        """


class NamedMetric(NamedTuple):
    """A metric with its name in reports and gates."""

    name: str
    metric: Metric

    @classmethod
    def of(cls, metric: "Metric | NamedMetric") -> "NamedMetric":
        """Name a metric after its plugin, unless it is already named."""
        return metric if isinstance(metric, NamedMetric) else cls(plugin_name(metric), metric)

    def info(self, failure: str = "") -> MetricInfo:
        """Its entry in a report; ``failure`` is the reason if it could not be computed."""
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
