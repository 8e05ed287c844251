"""From the outputs of a model to decisions: an optional decoder, then the task. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.config import registry
from edgeopt.errors import UsageError
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, Decoder, Metric, PerSample, Task


class Answers(NamedTuple):
    """The outputs of a model after the decoder, and what the task makes of them."""

    outputs: Outputs
    decisions: Decisions | None = None
    failure: UsageError | None = None
    """Why there are no decisions."""

    def read_by(self, metric: Metric) -> Any:
        """What a metric reads of the answers."""
        if metric.reads == "outputs":
            if len(self.outputs.arrays) == 1:
                return self.outputs.arrays[0]
            return dict(zip(self.outputs.all_names(), self.outputs.arrays, strict=True))
        assert self.decisions is not None
        if metric.reads == "decisions":
            return self.decisions
        return self.decisions.values if metric.reads == "values" else self.decisions.scores


@dataclass(frozen=True)
class Interpreter:
    """What the outputs of a model mean."""

    task: Task
    decoder: Decoder | None = None

    def decoded(self, outputs: Outputs) -> Outputs:
        """The outputs after the decoder; raises as ``decide``."""
        return outputs if self.decoder is None else self.decoder.apply(outputs)

    @classmethod
    def of_source(
        cls,
        source: Outputs,
        labels: PerSample | None,
        metrics: Sequence[Metric],
        task: Task | None = None,
        decoder: Decoder | None = None,
    ) -> "Interpreter":
        """The interpreter for the source model with these outputs; without a ``task``, it is found.

        Raises:
            UsageError: the outputs are not those of the decoder or of the task.
        """
        decoded = source if decoder is None else decoder.apply(source)
        judged = [metric for metric in metrics if metric.against == "labels"]
        return cls(task.settled(decoded) if task else find_task(judged, decoded, labels), decoder)

    def answers(self, outputs: Outputs) -> Answers:
        """What a model answers; does not raise."""
        decoded = outputs
        try:
            decoded = self.decoded(outputs)
            return Answers(decoded, self.task.decide(decoded))
        except UsageError as error:
            return Answers(decoded, None, error)

    def decide(self, outputs: Outputs) -> Decisions:
        """The decisions of the task.

        Raises:
            UsageError: the outputs are not those of the decoder or of the task.
        """
        return self.task.decide(self.decoded(outputs))

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of the outputs that decisions depend on; raises as ``decide``."""
        return tuple(range(len(names))) if self.decoder is not None else self.task.reads(names)

    def agreement(self, outputs: Outputs, source: Outputs) -> NDArray[np.float64] | None:
        """How far each decision is that of the source model, ``[n]``; None if undefined for the task.

        Raises:
            UsageError: as ``decide``.
        """
        if self.task.broken_agreement is None:
            return None
        return self.task.agreement(self.decide(outputs), self.decide(source))


@cache
def tasks() -> tuple[type[Task], ...]:
    """All tasks, in the order in which they are tried."""
    return tuple(sorted(registry.plugins(Task).values(), key=lambda task: task.order))


def find_task(metrics: Sequence[Metric], outputs: Outputs, targets: PerSample | None) -> Task:
    """The first task that the metrics fit, and that outputs and targets look like.

    If none looks like them, it is the first one that the metrics fit: its own message says what is missing.
    """
    named = [set(metric.tasks) for metric in metrics if metric.tasks]
    common = set.intersection(*named) if named else None
    known = [task for task in tasks() if common is None or _name(task) in common]
    for task in known:
        if task.fits(outputs, targets):
            return task().settled(outputs)
    if not known:
        listed = ", ".join(sorted({name for names in named for name in names}))
        raise UsageError(
            f"the metrics are of different tasks: {listed}", fix="use metrics of one task in a recipe"
        )
    return known[0]().settled(outputs)


def single(output: Outputs) -> Interpreter:
    """The interpreter of one output by itself, of which only the shape is known."""
    return Interpreter(find_task((), output, None))


def _name(task: type[Task]) -> str:
    return next(name for name, known in registry.plugins(Task).items() if known is task)
