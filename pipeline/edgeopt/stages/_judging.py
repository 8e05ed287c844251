"""How searches judge a quantized candidate: by all outputs, or the recipe's metric, on data of their own."""

from contextlib import suppress

import numpy as np

from edgeopt.config import registry
from edgeopt.errors import StageError, UsageError
from edgeopt.evaluation.hops import hop
from edgeopt.evaluation.interpreter import UNDECIDABLE, Interpreter, interpreters, labels_of
from edgeopt.evaluation.samples import by_task
from edgeopt.model import Array, Model, Outputs
from edgeopt.plugin import Context, Judging, Labels, Metric, NamedMetric
from edgeopt.results import MAX_SNR_DB, Hop

SAMPLES = 512
"""Maximum number of validation or calibration samples used, which bounds memory."""


def search_samples(
    model: Model, context: Context, limit: int = SAMPLES
) -> tuple[list[tuple[Array, ...]], Labels | None]:
    """Inputs of batch 1 and labels of the samples on which a search evaluates candidates.

    Raises:
        StageError: the recipe has neither validation nor calibration data.
    """
    # The quantizer has seen the calibration data, so validation data judge better.
    feed = context.validation or context.calibration
    if feed is None:
        raise StageError(
            "the search for max_drop needs validation or calibration data",
            fix="add data.validation or data.calibration to the recipe",
        )
    inputs: list[tuple[Array, ...]] = []
    labels: dict[str, list[Array]] = {}
    for sample in feed.samples(model):
        inputs.append(sample.inputs)
        for task, label in sample.labels.items():
            labels.setdefault(task, []).append(np.asarray(label))
        if len(inputs) == limit:
            break
    complete = {task: rows for task, rows in labels.items() if len(rows) == len(inputs)}
    return inputs, by_task(complete)


class Judge:
    """Compares candidates with the float model: by the recipe's metric where it can serve, else all outputs.

    A metric serves if it is a fraction and there are labels; without one, the first metric of the task, if
    there is only one task.
    """

    def __init__(self, reference: Outputs, labels: Labels | None, judging: Judging) -> None:
        named = len(judging.outputs) == len(reference.arrays)
        self.names = judging.outputs if named else reference.names
        self.reference = reference._replace(names=self.names)
        self.labels = labels
        metrics = [judging.metric] if judging.metric is not None else []
        self.interpreters: tuple[Interpreter, ...] = ()
        with suppress(*UNDECIDABLE):  # the report says so, where the metric is computed
            self.interpreters = interpreters(self.reference, labels, metrics, judging.heads, judging.decoder)
        self.metric = self._metric(judging.metric)
        self.before = self._score(self.reference)
        if self.before is None:
            self.metric = None

    def compare(self, outputs: Outputs) -> Hop:
        """What quantization has done to the outputs."""
        return hop(
            "quantization",
            "",
            lossless=False,
            before=self.reference,
            after=outputs._replace(names=self.names),
            interpreters=self.interpreters,
        )

    def drop(self, outputs: Outputs, compared: Hop) -> float:
        """The drop of the metric; else the disagreement; else the relative error power of the worst output.

        It is 1 for outputs that the report would call broken.
        """
        if compared.status == "broken":
            return 1.0
        after = self._score(outputs) if self.metric is not None else None
        if self.metric is not None and self.before is not None:
            if after is None:
                return 1.0
            return (self.before - after) * (1 if self.metric.metric.higher_is_better else -1)
        if compared.agreement is not None:
            return 1.0 - compared.agreement
        return min(1.0, noise_of(compared.snr_db))

    def _metric(self, named: NamedMetric | None) -> NamedMetric | None:
        if named is None and len(self.interpreters) == 1 and self.interpreters[0].task.metrics:
            (known,) = self.interpreters
            named = NamedMetric("", registry.find(Metric, known.task.metrics[0])(), known.head)
        if named is None or named.metric.kind != "fraction" or labels_of(self.labels, named.head) is None:
            return None
        return named

    def _score(self, outputs: Outputs) -> float | None:
        """The value of the metric; None if it cannot be computed."""
        if self.metric is None:
            return None
        _, metric, head = self.metric
        known = next((known for known in self.interpreters if known.head == head), None)
        answers = known.answers(outputs._replace(names=self.names)) if known is not None else None
        if answers is None or answers.decisions is None:
            return None
        try:
            return float(metric.score(answers.read_by(metric), labels_of(self.labels, head)).value)
        except UsageError:
            return None


def noise_of(snr_db: float | None) -> float:
    """Error power of the outputs, relative to their own power."""
    return 10 ** (-(snr_db if snr_db is not None else -MAX_SNR_DB) / 10)
