"""From the outputs of a model to decisions: an optional decoder, then a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.config import registry
from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, Decoder, Head, Labels, Metric, NamedMetric, PerSample, Task

UNDECIDABLE = (UsageError, DataError)
"""What ``decide`` raises: the outputs do not fit, or the decoder of the user failed."""


class Answers(NamedTuple):
    """The outputs of a model that a task reads, and what it makes of them."""

    outputs: Outputs
    decisions: Decisions | None = None
    failure: EdgeoptError | None = None
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
    """What the outputs of a model mean, or some of them if it has several tasks."""

    task: Task
    decoder: Decoder | None = None
    head: str = ""
    """The name of the task in the recipe; empty for the only one, which reads all outputs."""
    names: tuple[str, ...] = ()
    """The outputs that the task reads; empty: all."""

    def decoded(self, outputs: Outputs) -> Outputs:
        """The outputs that the task reads; raises as ``decide``."""
        decoded = outputs if self.decoder is None else self.decoder.apply(outputs)
        return _chosen(decoded, self.names)

    def answers(self, outputs: Outputs) -> Answers:
        """What a model answers; does not raise."""
        decoded = outputs
        try:
            decoded = self.decoded(outputs)
            return Answers(decoded, self.task.decide(decoded))
        except UNDECIDABLE as error:
            return Answers(decoded, None, error)

    def decide(self, outputs: Outputs) -> Decisions:
        """The decisions of the task.

        Raises:
            UsageError: the outputs are not those of the decoder or of the task.
            DataError: a decoder of the user failed.
        """
        return self.task.decide(self.decoded(outputs))

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of the outputs that decisions depend on; raises as ``decide``."""
        if self.decoder is not None:
            return tuple(range(len(names)))
        if not self.names:
            return self.task.reads(names)
        positions = [_position(names, name) for name in self.names]
        return tuple(positions[index] for index in self.task.reads(self.names))

    def agreement(self, outputs: Outputs, source: Outputs) -> NDArray[np.float64] | None:
        """How far each decision is that of the source model, ``[n]``; None if undefined for the task.

        Raises:
            UsageError, DataError: as ``decide``.
        """
        if self.task.broken_agreement is None:
            return None
        return self.task.agreement(self.decide(outputs), self.decide(source))


def interpreters(
    source: Outputs,
    labels: Labels | None,
    metrics: Sequence[NamedMetric],
    heads: Sequence[Head] = (),
    decoder: Decoder | None = None,
) -> tuple[Interpreter, ...]:
    """The interpreters for a source model with these outputs, one for each task.

    Without ``heads``, there is one, of the task that is found by the metrics, the labels and the outputs.

    Raises:
        UsageError: the outputs are not those of the decoder or of a task.
        DataError: a decoder of the user failed.
    """
    decoded = source if decoder is None else decoder.apply(source)
    if heads:
        settled = [head.task.settled(_chosen(decoded, head.outputs)) for head in heads]
        return tuple(
            Interpreter(task, decoder, head.name, head.outputs)
            for task, head in zip(settled, heads, strict=True)
        )
    judged = [metric for _, metric, _ in metrics if metric.against == "labels"]
    return (Interpreter(find_task(judged, decoded, labels_of(labels, "")), decoder),)


def labels_of(labels: Labels | None, head: str) -> PerSample | None:
    """The labels of one task. Labels without a name are those of every task that is asked for."""
    return labels.get(head) if isinstance(labels, Mapping) else labels


def _chosen(outputs: Outputs, names: Sequence[str]) -> Outputs:
    if not names:
        return outputs
    known = outputs.all_names()
    positions = [_position(known, name) for name in names]
    return Outputs([outputs.arrays[index] for index in positions], list(names))


def _position(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise UsageError(
            f"tasks: the model has no output {name!r}; it has {', '.join(map(repr, names))}",
            fix="join the names of the outputs that a task reads with '+', such as boxes+scores",
        )
    return list(names).index(name)


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
            f"the metrics are of different tasks: {listed}",
            fix="use metrics of one task in a recipe, or say with 'tasks' which outputs belong to which task",
        )
    return known[0]().settled(outputs)


def single(output: Outputs) -> Interpreter:
    """The interpreter of one output by itself, of which only the shape is known."""
    return Interpreter(find_task((), output, None))


def _name(task: type[Task]) -> str:
    return next(name for name, known in registry.plugins(Task).items() if known is task)
