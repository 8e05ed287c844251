"""Scores model outputs with the recipe's metrics; a metric that fails does not fail the run."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.evaluation.confidence.intervals import resampled
from edgeopt.evaluation.confidence.paired import Paired, common_reach
from edgeopt.evaluation.findings import Reader
from edgeopt.evaluation.interpreter import UNDECIDABLE, Answers, Interpreter, interpreters, labels_of
from edgeopt.evaluation.measurements import measurement
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, Decoder, Head, Labels, Metric, NamedMetric, PerSample, Score
from edgeopt.recipe.recipe import Recipe
from edgeopt.results import Measurement, MetricInfo
from edgeopt.run.executors import executor
from edgeopt.run.executors.local import LocalExecutor

SCORING_MINUTES = 20.0


class ArtifactScores(NamedTuple):
    """The metrics of one artifact."""

    values: dict[str, Measurement]
    pairs: dict[str, Paired]
    """Per-sample scores of the source model and the artifact, by metric; negated if lower is better.

    Of a metric of the whole set, they are contributions."""
    outputs: dict[str, dict[str, Measurement]]
    """The metrics against the source model by output; empty if there is only one."""
    decisions: dict[str, Decisions]
    """By the name of the task; '' for the only one. Outputs that could not be interpreted have none."""


class Scorer:
    """Computes metrics; user-defined ones run in a separate process. A context manager."""

    def __init__(
        self,
        metrics: Sequence[NamedMetric],
        labels: Labels | None,
        failures: Mapping[str, str] | None = None,
        *,
        heads: Sequence[Head] = (),
        decoder: Decoder | None = None,
    ) -> None:
        """``failures``: metrics known to fail, with the reason; they are not computed.

        Without ``heads``, the task is found by the metrics, the labels, and the outputs of the source model.
        """
        self.metrics = metrics
        self.labels = labels
        self.failures = dict(failures or {})
        self.interpreters: tuple[Interpreter, ...] = ()
        """Set by ``source``, one for each task; empty if no task fits."""
        self._heads, self._decoder = tuple(heads), decoder
        self._source: dict[str, Answers] = {}
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
    def source_decisions(self) -> dict[str, Decisions]:
        """The decisions of the source model by task, where its outputs could be interpreted."""
        return _decisions(self._source)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """The tasks, with the decisions of the source model and the labels; set by ``source``."""
        before = self.source_decisions
        return tuple(
            Reader(known.task, before[known.head], labels_of(self.labels, known.head), known.head)
            for known in self.interpreters
            if known.head in before
        )

    def source(self, outputs: Outputs) -> dict[str, Measurement]:
        """The label-based metrics of the source model; must be called before ``artifact``.

        Raises:
            UsageError: the outputs are not those of the decoder or the task, or labels do not fit a metric.
        """
        self._source = self._answers(outputs)
        values = {}
        for named in self.metrics:
            if named.metric.against == "labels" and self._labels(named) is not None:
                failure = self._source[named.head].failure
                if named.metric.reads != "outputs" and isinstance(failure, UsageError):
                    raise failure
                score = self._against_labels(named, self._source)
                value = self._measured(named, score, resamples=self._resamples(named, score))
                if score is not None and value is not None:
                    self._of_source[named.name] = score
                    values[named.name] = value
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
        for named in self.metrics:
            name, metric = named.name, named.metric
            if metric.against == "source":
                each = self._against_source(named, answers, outputs, source)
                if each:
                    worst = min if metric.higher_is_better else max
                    values[name] = worst(each.values(), key=lambda value: value.value)
                for title, one in each.items() if len(each) > 1 else ():
                    by_output.setdefault(title, {})[name] = one
                continue
            before = self._of_source.get(name)
            if before is None:
                continue
            after = self._against_labels(named, answers)
            resamples = self._resamples(named, after, of_source=False)
            value = self._measured(named, after, resamples=resamples)
            if after is None or value is None:
                continue
            values[name] = value
            sign = 1.0 if metric.higher_is_better else -1.0
            pair = _paired(metric, before, after)
            if pair is not None:
                pairs[name] = pair
            drops = pair.drops if pair is not None and resamples is None else None
            if resamples is not None:
                resamples = sign * (self._resampled[name] - resamples) + 0.0
            drop = Score(sign * (before.value - after.value) + 0.0, drops)  # 0, not -0, if nothing changed
            values[f"{name}_drop"] = measurement(metric, drop, "drop", resamples, self._samples(named))
        return ArtifactScores(values, pairs, by_output, _decisions(answers))

    def _labels(self, named: NamedMetric) -> PerSample | None:
        return labels_of(self.labels, named.head)

    def _samples(self, named: NamedMetric) -> int | None:
        labels = self._labels(named)
        return len(labels) if labels is not None and named.metric.against == "labels" else None

    def infos(self) -> tuple[MetricInfo, ...]:
        """The metrics for the report, with the reasons of failures."""
        return tuple(metric.info(self.failures.get(metric.name, "")) for metric in self.metrics)

    def _answers(self, outputs: Outputs) -> dict[str, Answers]:
        """The outputs as interpreted, by task; the first ones, of the source model, decide the task."""
        if not self.interpreters:
            try:
                self.interpreters = interpreters(
                    outputs, self.labels, self.metrics, self._heads, self._decoder
                )
            except UNDECIDABLE as error:
                heads = [head.name for head in self._heads] or [""]
                return {head: Answers(outputs, None, error) for head in heads}
        return {known.head: known.answers(outputs) for known in self.interpreters}

    def _against_labels(self, named: NamedMetric, answers: Mapping[str, Answers]) -> Score | None:
        own = answers[named.head]
        if isinstance(own.failure, DataError):
            self.failures.setdefault(named.name, str(own.failure))
            return None
        if named.metric.reads != "outputs" and own.decisions is None:
            return None
        return self._score(named.name, named.metric, own.read_by(named.metric), self._labels(named))

    def _against_source(
        self, named: NamedMetric, answers: Mapping[str, Answers], outputs: Outputs, source: Outputs
    ) -> dict[str, Measurement]:
        """A metric against the source model: of every output, or of the decisions of every task."""
        name, metric, _ = named
        if metric.reads == "outputs":
            pairs = zip(outputs.arrays, source.arrays, strict=False)
            scores = {source.name(i): self._score(name, metric, *pair) for i, pair in enumerate(pairs)}
        else:
            after, before = _decisions(answers), self.source_decisions
            agreements = {
                known.head: known.task.agreement(after[known.head], before[known.head])
                for known in self.interpreters
                if known.head in after and known.head in before
            }
            scores = {
                head: self._score(name, metric, agreement, None)
                for head, agreement in agreements.items()
                if agreement is not None
            }
        measured = {title: self._measured(named, score, "fidelity") for title, score in scores.items()}
        # One that could not be computed for every output does not say which is the worst.
        return {title: value for title, value in measured.items() if value} if all(measured.values()) else {}

    def _resamples(
        self, named: NamedMetric, score: Score | None, *, of_source: bool = True
    ) -> NDArray[np.float64] | None:
        """The values of a metric of the whole set for resampled sets."""
        labels, metric = self._labels(named), named.metric
        if score is None or score.evidence is None or labels is None or not is_shipped(metric):
            return None
        values = resampled(partial(metric.weighted, score.evidence), len(labels))
        if of_source:
            self._resampled[named.name] = values
        return values

    def _measured(
        self,
        named: NamedMetric,
        score: Score | None,
        role: str = "quality",
        resamples: NDArray[np.float64] | None = None,
    ) -> Measurement | None:
        if score is None:
            return None
        try:
            return measurement(
                named.metric,
                score,
                "fidelity" if role == "fidelity" else "quality",
                resamples,
                self._samples(named),
            )
        except EdgeoptError as error:
            self.failures[named.name] = str(error)
            return None

    def _score(self, name: str, metric: Metric, outputs: Any, target: Any) -> Score | None:
        if name in self.failures:
            return None
        if is_shipped(metric):
            return metric.scored(outputs, target)
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


def scorer_of(recipe: Recipe, labels: Labels | None, failures: Mapping[str, str] | None = None) -> Scorer:
    """The scorer of a recipe, for the labels of its evaluation data."""
    return Scorer(recipe.metrics, labels, failures, heads=recipe.heads, decoder=recipe.decoder)


def _decisions(answers: Mapping[str, Answers]) -> dict[str, Decisions]:
    return {head: own.decisions for head, own in answers.items() if own.decisions is not None}


def _paired(metric: Metric, before: Score, after: Score) -> Paired | None:
    """The values of the samples, or their contributions; None if the metric has neither."""
    sign = 1.0 if metric.higher_is_better else -1.0
    if before.per_sample is not None and after.per_sample is not None:
        return Paired(sign * before.per_sample, sign * after.per_sample, metric.kind == "fraction")
    if before.contributions is None or after.contributions is None:
        return None
    (one, reach), (other, its_reach) = before.contributions, after.contributions
    return Paired(sign * one, sign * other, reach=common_reach(reach, its_reach))


def is_shipped(metric: Metric) -> bool:
    """Whether a metric runs no third-party code."""
    kind = type(metric)
    return kind.__module__.startswith("edgeopt.") and not metric.runs_code


def _score(say: executor.Say, metric: Metric, outputs: Any, target: Any) -> Score:
    return metric.scored(outputs, target)
