"""Boxes: conversion to corners, and intersection over union."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh", "yxyx"]
"""Corners; a corner and the size; the centre and the size; corners with y first."""

Boxes: TypeAlias = NDArray[np.float64]
"""Boxes ``[..., 4]``: x1, y1, x2, y2."""


def corners(boxes: NDArray[np.float64], box_format: BoxFormat) -> Boxes:
    """Convert boxes ``[..., 4]`` to x1, y1, x2, y2."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if box_format == "xywh":
        first, second = first, first + second
    elif box_format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif box_format == "yxyx":
        first, second = first[..., ::-1], second[..., ::-1]
    return np.concatenate([first, second], axis=-1)


def iou(boxes: Boxes, others: Boxes, crowd: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Intersection over union of boxes ``[m, 4]`` and ``[k, 4]``, as ``[m, k]``; 0 if a box is empty.

    For a ``crowd`` among the others ``[k]``, it is the intersection over the area of the box, as in COCO.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # boxes of a broken model, such as 1e300
        sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
        shared = np.where((sides > 0).all(axis=2), sides.prod(axis=2), 0.0)
        union = areas(boxes)[:, None] + areas(others) - shared
        if crowd is not None:
            union = np.where(crowd, areas(boxes)[:, None], union)
        ratio = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return np.where(np.isfinite(ratio), ratio, 0.0)


def areas(boxes: Boxes) -> NDArray[np.float64]:
    """Width times height of boxes ``[k, 4]``, as ``[k]``; negative if one of them is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
