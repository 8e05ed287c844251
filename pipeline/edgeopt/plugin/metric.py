"""Metrics: scores of model outputs."""

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

from edgeopt.config.registry import Kind as PluginKind
from edgeopt.config.registry import plugin_name
from edgeopt.plugin.base import Plugin
from edgeopt.results import Kind, MetricInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Reading: TypeAlias = Literal["scores", "values", "outputs", "decisions"]


class Contributions(NamedTuple):
    """A metric of the whole set as a mean over samples, to first order.

    The value changes by about the sum of ``dw[i] * (values[i] - value) / n`` if the weights of the samples
    change by ``dw`` (influence function; Hampel, Journal of the American Statistical Association 69, 1974).
    """

    values: "NDArray[np.float64]"
    """``[n]``; their mean is the value of the metric."""
    reach: float = 0.0
    """By how much a contribution changes if the model fails on all of a sample, for the heaviest sample of
    the set; 0 if there is no such bound. Samples differ in weight: in an image of a rare class, a miss costs
    much more mAP than in others."""


class Score(NamedTuple):
    """A metric's value, and what it is made of, sample by sample."""

    value: float
    per_sample: "NDArray[np.float64] | None" = None
    """For a mean over samples, the value of each sample ``[n]``."""
    evidence: Any = None
    """For a metric of the whole set, such as mAP: what ``Metric.weighted`` computes it from."""
    contributions: Contributions | None = None
    """For a metric with evidence: set by `Metric.scored`."""


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

    def weighted(self, evidence: Any, weights: "NDArray[np.float64]") -> float:
        """The value with sample ``i`` counted ``weights[i]`` times, from the ``evidence`` of a score.

        With weights of 1 it is the value of the score. Resampled sets of samples are weights.
        """
        raise NotImplementedError

    def contributions(self, evidence: Any, samples: int) -> Contributions:
        """The value as a mean over the ``samples``, from the ``evidence`` of a score that is finite.

        Gates with a confidence and baselines compare models by it. By default, the samples are left out one
        by one (jackknife; Efron and Tibshirani 1993, "An Introduction to the Bootstrap", ch. 11), which takes
        as many calls of ``weighted``, and suits metrics that change smoothly with the weights.
        """
        import numpy as np

        whole, weights = self.weighted(evidence, np.ones(samples)), np.ones(samples)
        rest = np.full(samples, whole)
        for index in range(samples if samples > 1 else 0):
            weights[index] = 0.0
            rest[index] = self.weighted(evidence, weights)
            weights[index] = 1.0
        rest = np.where(np.isfinite(rest), rest, whole)  # undefined without this sample
        return Contributions(whole + (samples - 1) * (rest.mean() - rest))

    def scored(self, outputs: Any, target: Any) -> Score:
        """The score with its contributions, if it has evidence; raises as ``score`` and ``require``."""
        self.require()
        score = self.score(outputs, target)
        if score.evidence is None or not math.isfinite(score.value):
            return score
        return score._replace(contributions=self.contributions(score.evidence, len(target)))


class NamedMetric(NamedTuple):
    """A metric with its name in reports and gates."""

    name: str
    metric: Metric
    head: str = ""
    """The name of the task that it scores, in a model with several."""

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
