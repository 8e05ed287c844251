"""Metrics: scores of model outputs."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.registry import Kind as PluginKind
from edgeopt.config.registry import plugin_name
from edgeopt.plugin.base import Plugin
from edgeopt.results import Kind, MetricInfo

Reading: TypeAlias = Literal["scores", "values", "outputs", "decisions"]


class Score(NamedTuple):
    """A metric's value, and what it is made of, sample by sample."""

    value: float
    per_sample: NDArray[np.float64] | None = None
    """For a mean over samples, the value of each sample ``[n]``."""
    evidence: Any = None
    """For a metric of the whole set, such as mAP: what ``Metric.weighted`` computes it from."""


class Metric(Plugin):
    """Scores a model. ``against`` is its reference: labels, or the source model."""

    plugin_kind: ClassVar[PluginKind] = "metrics"

    against: ClassVar[Literal["labels", "source"]] = "labels"
    tasks: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks that it fits; empty: any."""
    reads: ClassVar[Reading] = "outputs"
    """What it scores: the scores or values of a task's decisions, the decisions, or the outputs."""
    of_set: ClassVar[bool] = False
    """Whether it is no mean over samples, but a metric of the whole set, such as mAP."""
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
    def score(self, outputs: Any, target: Any) -> Score:
        """Score ``n`` samples.

        ``outputs`` is what the metric ``reads``: scores ``[n, ..., classes]``, or one value per sample, or
        the array of the only output ``[n, ...]``, or all outputs by name if there are several. ``target`` is
        the labels, an array ``[n, ...]`` or a list of ``n`` arrays, or the same of the source model.

        Raises:
            UsageError: the target does not match the outputs, such as a label out of range.
        """

    def weighted(self, evidence: Any, weights: NDArray[np.float64]) -> float:
        """The value with sample ``i`` counted ``weights[i]`` times, from the ``evidence`` of a score.

        With weights of 1 it is the value of the score. Resampled sets of samples are weights.
        """
        raise NotImplementedError


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
