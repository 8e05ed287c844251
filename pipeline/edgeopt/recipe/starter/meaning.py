"""What the outputs of a model most likely mean: its task, a metric, and the gate on it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgeopt.model import TensorSpec
from edgeopt.plugin import Labels

METRICS = {
    "classification": "top1",
    "multilabel": "f1",
    "regression": "mae",
    "segmentation": "miou",
}
"""The metric of each task that is recognised by the shapes of outputs and labels."""


class Meaning(NamedTuple):
    """A task and its metric; both empty if artifacts are compared with the model itself only."""

    task: str = ""
    metric: str = ""
    reason: str = ""
    """Why labels are not used."""

    @property
    def labelled(self) -> bool:
        return bool(self.metric)


UNKNOWN = Meaning()


def likely(spec: TensorSpec) -> tuple[str, str]:
    """The task, and a metric of it, that an output of this shape most often has."""
    task = "segmentation" if len(spec.shape) == 4 else "regression"
    if len(spec.shape) == 2 and spec.shape[1] != 1:
        task = "classification"
    return task, METRICS[task]


def without_labels(outputs: Sequence[TensorSpec]) -> Meaning:
    """The meaning of outputs whose labels are not there yet: classes are assumed for one ``[n, classes]``."""
    if len(outputs) == 1 and likely(outputs[0])[0] == "classification" and not outputs[0].takes_integers:
        return Meaning("classification", METRICS["classification"])
    return Meaning()


def with_labels(outputs: Sequence[TensorSpec], labels: Labels | None) -> Meaning:
    """The meaning of outputs by their shapes and the labels of some samples."""
    if labels is None:
        return Meaning(reason="the data has no labels")
    if not outputs:
        return Meaning(reason="the outputs of the model are unknown")
    if len(outputs) > 1 or isinstance(labels, Mapping):
        names = ", ".join(spec.name for spec in outputs)
        return Meaning(reason=f"the model has several outputs ({names}): say what each means with 'tasks'")
    (output,) = outputs
    if isinstance(labels, np.ndarray) and not output.takes_integers:
        task = _task(tuple(output.shape[1:]), labels)
        if task:
            return Meaning(task, METRICS[task])
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        scores = list(output.shape[1:])
        return Meaning(reason=f"labels go up to {labels.max()}, and an output has shape {scores}")
    shape = list(labels.shape[1:]) if isinstance(labels, np.ndarray) else "different lengths"
    return Meaning(
        reason=f"labels of shape {shape} fit no task of an output of shape {list(output.shape[1:])}"
    )


def _task(shape: tuple[int | None, ...], labels: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> str:
    own = labels.shape[1:]
    if not own and labels.dtype.kind in "biu":
        sizes = [size for size in shape if size != 1]
        classes = sizes[0] if sizes else 2
        known = len(sizes) <= 1 and labels.min() >= 0 and (classes is None or labels.max() < classes)
        return "classification" if known else ""
    if own == shape or (not own and shape == (1,)):
        tags = len(own) == 1 and own[0] > 1 and bool(np.isin(labels, (0, 1)).all())
        return "multilabel" if tags else "regression"
    if labels.dtype.kind in "iu" and len(own) == 2 and own in (shape[:2], shape[1:]):
        return "segmentation"
    return ""
