"""Labels of the classification metrics, checked against the scores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.model import Array


def class_labels(scores: Array, target: Array) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores ``[n, classes]`` in double precision and labels ``[n]`` for a classification metric.

    Raises:
        UsageError: the scores are not one per class, the labels are not integers, their number
            differs, or one is out of range (named with its index and the number of classes).
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UsageError(f"scores of shape {list(scores.shape)} are not one per class")
    count, classes = scores.shape
    labels: NDArray[Any] = np.asarray(target)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = "convert one-hot rows to class indices: y.argmax(axis=1)"
        raise UsageError(
            f"labels of shape {list(labels.shape)} are not one class index per sample",
            fix=hint if labels.shape[1:] == (classes,) else "provide one integer per sample",
        )
    if labels.dtype.kind not in "biu":
        broken = np.flatnonzero(labels != np.rint(labels)) if labels.dtype.kind == "f" else np.arange(1)
        first = int(broken[0]) if len(broken) else 0
        raise UsageError(
            f"labels are {labels.dtype}, not integers: label {first} is {labels[first]}",
            fix="save class indices as integers: y.astype('int64')",
        )
    if len(labels) != count:
        raise UsageError(f"{count} outputs but {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UsageError(
            f"label {int(labels[wrong[0]])} of sample {wrong[0]} is out of range: "
            f"the model has {classes} classes, 0 to {classes - 1}",
            fix="check that the labels belong to this model, and that they count from 0",
        )
    return scores.astype(np.float64), labels.astype(np.int64)
