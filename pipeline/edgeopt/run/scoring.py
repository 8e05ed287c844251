"""Scores model outputs with the recipe's metrics; a metric that fails does not fail the run."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.evaluation.interpreter import Answers, Interpreter
from edgeopt.evaluation.measurements import measurement
from edgeopt.evaluation.statistics import Paired, resampled
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, Decoder, Metric, NamedMetric, PerSample, Score, Task
from edgeopt.recipe.document import Recipe
from edgeopt.results import Measurement, MetricInfo
from edgeopt.run.executors import executor
from edgeopt.run.executors.local import LocalExecutor

SCORING_MINUTES = 20.0


class ArtifactScores(NamedTuple):
    """The metrics of one artifact."""

    values: dict[str, Measurement]
    pairs: dict[str, Paired]
    """Per-sample scores of the source model and the artifact, by metric; negated if lower is better."""
    outputs: dict[str, dict[str, Measurement]]
    """The metrics against the source model by output; empty if there is only one."""
    decisions: Decisions | None


class Scorer:
    """Computes metrics; user-defined ones run in a separate process. A context manager."""

    def __init__(
        self,
        metrics: Sequence[NamedMetric],
        labels: PerSample | None,
        failures: Mapping[str, str] | None = None,
        *,
        task: Task | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        """``failures``: metrics known to fail, with the reason; they are not computed.

        Without a ``task``, it is found by the metrics, the labels, and the outputs of the source model.
        """
        self.metrics = metrics
        self.labels = labels
        self.failures = dict(failures or {})
        self.interpreter: Interpreter | None = None
        """Set by ``source``; None if no task fits."""
        self._task, self._decoder = task, decoder
        self._source = Answers(Outputs(()))
        self._of_source: dict[str, Score] = {}
        self._resampled: dict[str, NDArray[np.float64]] = {}
        self._executor: LocalExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.close(at_once=True)

    @property
    def source_decisions(self) -> Decisions | None:
        """The decisions of the source model, if its outputs could be interpreted."""
        return self._source.decisions

    def source(self, outputs: Outputs) -> dict[str, Measurement]:
        """The label-based metrics of the source model; must be called before ``artifact``.

        Raises:
            UsageError: the outputs are not those of the decoder or the task, or labels do not fit a metric.
        """
        self._source = self._answers(outputs)
        values = {}
        for name, metric in self.metrics:
            if metric.against == "labels" and self.labels is not None:
                if metric.reads != "outputs" and self._source.failure is not None:
                    raise self._source.failure
                score = self._against_labels(name, metric, self._source)
                value = self._measured(name, metric, score, resamples=self._resamples(name, metric, score))
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
        answers = self._answers(outputs)
        for name, metric in self.metrics:
            if metric.against == "source":
                each = self._against_source(name, metric, answers, outputs, source)
                if each:
                    worst = min if metric.higher_is_better else max
                    values[name] = worst(each.values(), key=lambda value: value.value)
                for title, one in each.items() if len(each) > 1 else ():
                    by_output.setdefault(title, {})[name] = one
                continue
            before = self._of_source.get(name)
            if before is None or self.labels is None:
                continue
            after = self._against_labels(name, metric, answers)
            resamples = self._resamples(name, metric, after, of_source=False)
            value = self._measured(name, metric, after, resamples=resamples)
            if after is None or value is None:
                continue
            values[name] = value
            sign, drops = 1.0 if metric.higher_is_better else -1.0, None
            if before.per_sample is not None and after.per_sample is not None:
                fraction = metric.kind == "fraction"
                pairs[name] = Paired(sign * before.per_sample, sign * after.per_sample, fraction)
                drops = pairs[name].drops
            if resamples is not None:
                resamples = sign * (self._resampled[name] - resamples) + 0.0
            drop = Score(sign * (before.value - after.value) + 0.0, drops)  # 0, not -0, if nothing changed
            values[f"{name}_drop"] = measurement(metric, drop, "drop", resamples, self._samples(metric))
        return ArtifactScores(values, pairs, by_output, answers.decisions)

    def _samples(self, metric: Metric) -> int | None:
        return len(self.labels) if self.labels is not None and metric.against == "labels" else None

    def infos(self) -> tuple[MetricInfo, ...]:
        """The metrics for the report, with the reasons of failures."""
        return tuple(metric.info(self.failures.get(metric.name, "")) for metric in self.metrics)

    def _answers(self, outputs: Outputs) -> Answers:
        """The outputs as interpreted; the first ones are those of the source model, which decide the task."""
        if self.interpreter is None:
            metrics = [metric for _, metric in self.metrics]
            try:
                self.interpreter = Interpreter.of_source(
                    outputs, self.labels, metrics, self._task, self._decoder
                )
            except UsageError as error:
                return Answers(outputs, None, error)
        return self.interpreter.answers(outputs)

    def _against_labels(self, name: str, metric: Metric, answers: Answers) -> Score | None:
        if metric.reads != "outputs" and answers.decisions is None:
            return None
        return self._score(name, metric, answers.read_by(metric), self.labels)

    def _against_source(
        self, name: str, metric: Metric, answers: Answers, outputs: Outputs, source: Outputs
    ) -> dict[str, Measurement]:
        """A metric against the source model: of every output, unless it is of the decisions."""
        if metric.reads == "outputs":
            pairs = zip(outputs.arrays, source.arrays, strict=False)
            scores = {source.name(i): self._score(name, metric, *pair) for i, pair in enumerate(pairs)}
        else:
            decisions, before, interpreter = answers.decisions, self._source.decisions, self.interpreter
            if decisions is None or before is None or interpreter is None:
                return {}
            agreement = interpreter.task.agreement(decisions, before)
            if agreement is None:
                return {}
            scores = {"": self._score(name, metric, agreement, None)}
        measured = {title: self._measured(name, metric, score, "fidelity") for title, score in scores.items()}
        # One that could not be computed for every output does not say which is the worst.
        return {title: value for title, value in measured.items() if value} if all(measured.values()) else {}

    def _resamples(
        self, name: str, metric: Metric, score: Score | None, *, of_source: bool = True
    ) -> NDArray[np.float64] | None:
        """The values of a metric of the whole set for resampled sets."""
        if score is None or score.evidence is None or self.labels is None or not is_shipped(metric):
            return None
        values = resampled(partial(metric.weighted, score.evidence), len(self.labels))
        if of_source:
            self._resampled[name] = values
        return values

    def _measured(
        self,
        name: str,
        metric: Metric,
        score: Score | None,
        role: str = "quality",
        resamples: NDArray[np.float64] | None = None,
    ) -> Measurement | None:
        if score is None:
            return None
        try:
            return measurement(
                metric,
                score,
                "fidelity" if role == "fidelity" else "quality",
                resamples,
                self._samples(metric),
            )
        except EdgeoptError as error:
            self.failures[name] = str(error)
            return None

    def _score(self, name: str, metric: Metric, outputs: Any, target: Any) -> Score | None:
        if name in self.failures:
            return None
        if is_shipped(metric):
            return metric.score(outputs, target)
        if self._executor is None:
            self._executor = LocalExecutor()
        task = executor.Task(
            name, _score, (metric, outputs, target), "plain", SCORING_MINUTES, "score fewer samples"
        )
        self._executor.submit(task)
        (result,) = self._executor.wait(2 * SCORING_MINUTES * 60)
        if result.failure:
            self.failures[name] = result.failure
            return None
        score: Score = result.value
        return score


def scorer_of(recipe: Recipe, labels: PerSample | None, failures: Mapping[str, str] | None = None) -> Scorer:
    """The scorer of a recipe, for the labels of its evaluation data."""
    return Scorer(recipe.metrics, labels, failures, task=recipe.task, decoder=recipe.decoder)


def is_shipped(metric: Metric) -> bool:
    """Whether a metric runs no third-party code."""
    kind = type(metric)
    return kind.__module__.startswith("edgeopt.") and not metric.runs_code


def _score(say: executor.Say, metric: Metric, outputs: Any, target: Any) -> Score:
    return metric.score(outputs, target)
