"""Scores model outputs with the recipe's metrics; a metric that fails does not fail the run."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from edgeopt.errors import EdgeoptError
from edgeopt.evaluation.hops import Outputs
from edgeopt.evaluation.measurements import measurement
from edgeopt.evaluation.statistics import Paired
from edgeopt.model import Array
from edgeopt.plugin import Metric, NamedMetric, Score
from edgeopt.results import Measurement, MetricInfo
from edgeopt.run.executors.executor import Say, Task
from edgeopt.run.executors.local import LocalExecutor

SCORING_MINUTES = 20.0


class ArtifactScores(NamedTuple):
    """The metrics of one artifact."""

    values: dict[str, Measurement]
    pairs: dict[str, Paired]
    """Per-sample scores of the source model and the artifact, by metric; negated if lower is better."""
    outputs: dict[str, dict[str, Measurement]]
    """The metrics against the source model by output; empty if there is only one."""


class Scorer:
    """Computes metrics; user-defined ones run in a separate process. A context manager."""

    def __init__(
        self,
        metrics: Sequence[NamedMetric],
        labels: Array | None,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        """``failures``: metrics known to fail, with the reason; they are not computed."""
        self.metrics = metrics
        self.labels = labels
        self.failures = dict(failures or {})
        self._of_source: dict[str, Score] = {}
        self._executor: LocalExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.close(at_once=True)

    def source(self, outputs: Array) -> dict[str, Measurement]:
        """The label-based metrics of the source model; must be called before ``artifact``.

        ``outputs`` has shape ``[n, ...]``, one row per sample.
        """
        values = {}
        for name, metric in self.metrics:
            if metric.against == "labels" and self.labels is not None:
                score = self._score(name, metric, outputs, self.labels)
                value = self._measured(name, metric, score)
                if score is not None and value is not None:
                    self._of_source[name] = score
                    values[name] = value
        return values

    def artifact(self, outputs: Outputs, source: Outputs) -> ArtifactScores:
        """All metrics of an artifact; for label-based ones, also the paired drop from the source model.

        Metrics against the source model are those of the worst output. ``outputs`` are aligned with
        ``source``, and may be fewer: the hop then says that the model is broken.
        """
        values: dict[str, Measurement] = {}
        pairs: dict[str, Paired] = {}
        by_output: dict[str, dict[str, Measurement]] = {}
        for name, metric in self.metrics:
            if metric.against == "source":
                each = {}
                for index, (one, other) in enumerate(zip(outputs.arrays, source.arrays, strict=False)):
                    score = self._score(name, metric, one, other)
                    if (value := self._measured(name, metric, score, "fidelity")) is not None:
                        each[source.name(index)] = value
                if len(each) == len(outputs.arrays):
                    worst = min if metric.higher_is_better else max
                    values[name] = worst(each.values(), key=lambda value: value.value)
                for title, value in each.items() if len(each) > 1 else ():
                    by_output.setdefault(title, {})[name] = value
                continue
            before = self._of_source.get(name)
            if before is None or self.labels is None:
                continue
            after = self._score(name, metric, outputs.arrays[0], self.labels)
            value = self._measured(name, metric, after)
            if after is None or value is None:
                continue
            values[name] = value
            sign, drops = 1.0 if metric.higher_is_better else -1.0, None
            if before.per_sample is not None and after.per_sample is not None:
                fraction = metric.kind == "fraction"
                pairs[name] = Paired(sign * before.per_sample, sign * after.per_sample, fraction)
                drops = pairs[name].drops
            drop = Score(sign * (before.value - after.value), drops)
            values[f"{name}_drop"] = measurement(metric, drop, "drop")
        return ArtifactScores(values, pairs, by_output)

    def infos(self) -> tuple[MetricInfo, ...]:
        """The metrics for the report, with the reasons of failures."""
        return tuple(metric.info(self.failures.get(metric.name, "")) for metric in self.metrics)

    def _measured(
        self, name: str, metric: Metric, score: Score | None, role: str = "quality"
    ) -> Measurement | None:
        if score is None:
            return None
        try:
            return measurement(metric, score, "fidelity" if role == "fidelity" else "quality")
        except EdgeoptError as error:
            self.failures[name] = str(error)
            return None

    def _score(self, name: str, metric: Metric, outputs: Array, target: Array) -> Score | None:
        if name in self.failures:
            return None
        if is_shipped(metric):
            return metric.score(outputs, target)
        if self._executor is None:
            self._executor = LocalExecutor()
        task = Task(name, _score, (metric, outputs, target), "plain", SCORING_MINUTES, "score fewer samples")
        self._executor.submit(task)
        (result,) = self._executor.wait(2 * SCORING_MINUTES * 60)
        if result.failure:
            self.failures[name] = result.failure
            return None
        score: Score = result.value
        return score


def is_shipped(metric: Metric) -> bool:
    """Whether a metric runs no third-party code."""
    kind = type(metric)
    return kind.__module__.startswith("edgeopt.") and not metric.runs_code


def _score(say: Say, metric: Metric, outputs: Array, target: Array) -> Score:
    return metric.score(outputs, target)
