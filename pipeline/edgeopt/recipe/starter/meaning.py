"""What the outputs of a model most likely mean: its task, and a metric of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgeopt.config import registry
from edgeopt.errors import UsageError
from edgeopt.evaluation.interpreter import tasks
from edgeopt.model import Outputs, TensorSpec
from edgeopt.plugin import Labels, Metric, Task


class Meaning(NamedTuple):
    """A metric that labels are judged by; empty if artifacts are compared with the model itself only."""

    metric: str = ""
    task: Task | None = None
    classes: int | None = None
    """The number of classes, for outputs of one score for each."""
    reason: str = ""
    """Why labels are not used."""

    @property
    def labelled(self) -> bool:
        return bool(self.metric)

    @property
    def is_fraction(self) -> bool:
        """Whether the metric is a fraction, of which a drop of one point is a usual limit."""
        return self.labelled and registry.find(Metric, self.metric)().kind == "fraction"


UNKNOWN = Meaning()


def likely(spec: TensorSpec) -> tuple[str, str]:
    """The task, and a metric of it, that an output of this shape most often has."""
    if _are_classes(spec):
        return "classification", "top1"
    return ("segmentation", "miou") if len(spec.shape) == 4 else ("regression", "mae")


def _are_classes(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.shape[1] != 1


def without_labels(outputs: Sequence[TensorSpec]) -> Meaning:
    """The meaning of outputs whose labels are not there yet: classes are assumed for one ``[n, classes]``."""
    if len(outputs) == 1 and _are_classes(outputs[0]) and not outputs[0].takes_integers:
        return Meaning(likely(outputs[0])[1], classes=outputs[0].shape[1])
    return UNKNOWN


def with_labels(outputs: Outputs, labels: Labels | None) -> Meaning:
    """The meaning of outputs by the first task that they and the labels of the same samples fit."""
    if labels is None:
        return Meaning(reason="the data has no labels")
    if len(outputs.arrays) > 1 or isinstance(labels, Mapping):
        names = ", ".join(outputs.all_names())
        return Meaning(reason=f"the model has several outputs ({names}): say what each means with 'tasks'")
    shape = list(outputs.arrays[0].shape[1:])
    for kind in tasks():
        if not kind.metrics or not kind.fits(outputs, labels):
            continue
        task = kind()
        try:
            decisions, expected = task.decide(outputs), task.expected(labels)
        except UsageError:
            continue
        if expected is None:
            continue
        scores = None if decisions.scores is None else np.asarray(decisions.scores)
        classes = (
            scores.shape[-1] if scores is not None and scores.ndim == np.ndim(decisions.values) + 1 else None
        )
        last = np.max(np.asarray(expected.values), initial=0)
        if classes is not None and last >= classes:
            return Meaning(reason=f"labels go up to {last}, and an output has shape {shape}")
        return Meaning(kind.metrics[0], task, classes)
    own = list(labels.shape[1:]) if isinstance(labels, np.ndarray) else "different lengths"
    return Meaning(reason=f"labels of shape {own} fit no task of an output of shape {shape}")
