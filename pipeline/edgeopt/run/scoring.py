"""The recipe's metrics on the outputs of its models. A metric that fails costs itself, not the run."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from edgeopt.errors import EdgeoptError
from edgeopt.evaluation.measurements import measurement
from edgeopt.evaluation.statistics import Paired
from edgeopt.model import Array
from edgeopt.plugin import Metric, NamedMetric, Score
from edgeopt.results import Measurement, MetricInfo
from edgeopt.run.executors.executor import Say, Task
from edgeopt.run.executors.local import LocalExecutor

SCORING_MINUTES = 20.0


class Judged(NamedTuple):
    """What the metrics say of one artifact."""

    values: dict[str, Measurement]
    pairs: dict[str, Paired]
    """Per metric with a value per sample: the source model's and the artifact's, higher being better."""


class Scorer:
    """Applies metrics, those that others wrote in a process of their own. Use it as a context manager."""

    def __init__(
        self,
        metrics: Sequence[NamedMetric],
        labels: Array | None,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        """``failures``: metrics that are known to fail, and why."""
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
        """What the metrics that need labels say of the source model; to be called before ``artifact``."""
        found = {}
        for name, metric in self.metrics:
            if metric.against == "labels" and self.labels is not None:
                score = self._score(name, metric, outputs, self.labels)
                value = self._measured(name, metric, score)
                if score is not None and value is not None:
                    self._of_source[name] = score
                    found[name] = value
        return found

    def artifact(self, outputs: Array, source: Array) -> Judged:
        """Every metric of an artifact's outputs and, against labels, its paired drop from the source's."""
        values: dict[str, Measurement] = {}
        pairs: dict[str, Paired] = {}
        for name, metric in self.metrics:
            if metric.against == "source":
                score = self._score(name, metric, outputs, source)
                if (value := self._measured(name, metric, score, "fidelity")) is not None:
                    values[name] = value
                continue
            before = self._of_source.get(name)
            if before is None or self.labels is None:
                continue
            after = self._score(name, metric, outputs, self.labels)
            value = self._measured(name, metric, after)
            if after is None or value is None:
                continue
            values[name] = value
            sign, drops = 1.0 if metric.higher_is_better else -1.0, None
            if before.per_sample is not None and after.per_sample is not None:
                pairs[name] = Paired(sign * before.per_sample, sign * after.per_sample)
                drops = pairs[name].drops
            drop = Score(sign * (before.value - after.value), drops)
            values[f"{name}_drop"] = measurement(metric, drop, "drop")
        return Judged(values, pairs)

    def infos(self) -> tuple[MetricInfo, ...]:
        """What a report says of each metric."""
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
        (ended,) = self._executor.wait(2 * SCORING_MINUTES * 60)
        if ended.failure:
            self.failures[name] = ended.failure
            return None
        score: Score = ended.value
        return score


def is_shipped(metric: Metric) -> bool:
    """Whether no code of anybody else runs in it."""
    kind = type(metric)
    return kind.__module__.startswith("edgeopt.") and not metric.runs_code


def _score(say: Say, metric: Metric, outputs: Array, target: Array) -> Score:
    return metric.score(outputs, target)
