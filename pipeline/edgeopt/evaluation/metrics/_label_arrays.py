"""Labels of metrics that read decisions: one class per sample, or 0 or 1 per label."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.model import Array


def class_indices(target: Array, count: int) -> NDArray[np.int64]:
    """Labels ``[n]`` of ``count`` outputs, as integers of at least 0.

    Raises:
        UsageError: they are not one integer per output, or one is negative.
    """
    labels = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    if labels.ndim != 1:
        raise UsageError(
            f"labels of shape {list(labels.shape)} are not one class index per sample",
            fix="provide one integer per sample; convert one-hot rows by y.argmax(axis=1)",
        )
    if len(labels) != count:
        raise UsageError(f"{count} outputs but {len(labels)} labels")
    if labels.dtype.kind not in "biu":
        raise UsageError(f"labels are {labels.dtype}, not integers", fix="save them by y.astype('int64')")
    indices = labels.astype(np.int64)
    if len(wrong := np.flatnonzero(indices < 0)):
        raise UsageError(
            f"label {indices[wrong[0]]} of sample {wrong[0]} is negative", fix="count the classes from 0"
        )
    return indices


def label_matrix(target: Array, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether each label applies to each sample, ``[n, labels]``, for outputs of that shape.

    Raises:
        UsageError: the labels have another shape, or values other than 0 and 1.
    """
    if len(shape) != 2:
        raise UsageError(
            f"outputs of shape {list(shape)} are not one value per label", fix="name the task of the model"
        )
    if len(target) != shape[0]:
        raise UsageError(f"{shape[0]} outputs but {len(target)} labels")
    if target.shape != shape and not (shape[1] == 1 and target.size == len(target)):
        raise UsageError(
            f"labels of shape {list(target.shape)} do not match outputs of shape {list(shape)}",
            fix="provide 0 or 1 for each label of each sample",
        )
    labels = target.reshape(shape)
    known = np.isin(labels, (0, 1)) if labels.dtype.kind in "biuf" else np.zeros(shape, bool)
    if not known.all():
        sample, label = np.argwhere(~known)[0]
        raise UsageError(
            f"label {label} of sample {sample} is {labels[sample, label]}",
            fix="provide 0 or 1 for each label of each sample",
        )
    return labels.astype(bool)
