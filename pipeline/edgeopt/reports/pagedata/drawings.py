"""Page data of drawings: label, source and artifact of a sample side by side, with their differences.

A drawing says by itself how it is shown; no task is known here.
"""

import colorsys
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from edgeopt.evaluation.boxes import iou
from edgeopt.reports.pagedata.findings import Data
from edgeopt.reports.thumbnails import data_uri
from edgeopt.results import (
    Boxes,
    Classes,
    Drawing,
    Mask,
    Measurement,
    Numbers,
    Picture,
    Points,
    Reference,
    Tokens,
)

MAX_LEGEND = 12
"""Maximum number of classes in the legend of a mask."""
SAME = 0.5
"""Intersection over union from which two boxes of a class are of the same object."""
RED = (226, 61, 40)


def fraction(value: float) -> str:
    """A fraction, formatted as in the tables of measurements."""
    return Measurement(value=value, kind="fraction").text


def panes_of(reference: Reference | None, artifact: Drawing | None) -> list[Data]:
    """Label, source and artifact side by side. Each marks what its counterpart does not have."""
    label, source = (reference.label, reference.source) if reference is not None else (None, None)
    truth = label if label is not None else source
    shown = [
        ("label", label, artifact),
        ("original", source, label if label is not None else artifact),
        ("this file", artifact, truth),
    ]
    panes = [
        {"title": title} | data
        for title, drawing, other in shown
        if drawing is not None and (data := _drawing(drawing, other)) is not None
    ]
    if isinstance(artifact, Mask) and isinstance(source, Mask) and (data := _difference(artifact, source)):
        panes.append({"title": "change"} | data)
    return panes


def _drawing(drawing: Drawing, other: Drawing | None) -> Data | None:
    """Page data of a drawing that is compared with another; None if it is damaged."""
    try:
        return {"kind": drawing.kind} | _DRAWN[type(drawing)](drawing, other)
    except ValueError:
        return None


def _boxes(drawing: Boxes, other: Drawing | None) -> Data:
    boxes = [box for box in drawing.boxes if np.isfinite(box.corners).all()]
    found = _found(boxes, other.boxes) if isinstance(other, Boxes) else [True] * len(boxes)
    rows: list[list[Any]] = [
        [*box.corners, box.label, "" if box.score is None else f"{box.score:.0%}", same]
        for box, same in zip(boxes, found, strict=True)
    ]
    return {"rows": rows, "count": drawing.count}


def _found(boxes: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Which boxes are of an object that the others have too, each of which counts once."""
    if not boxes or not others:
        return [False] * len(boxes)
    one, two = (np.array([box.corners for box in each], np.float64) for each in (boxes, others))
    labels = np.array([box.label for box in others])
    overlap = np.where(np.array([box.label for box in boxes])[:, None] == labels, iou(one, two), 0.0)
    found = [False] * len(boxes)
    while overlap.max() >= SAME:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        found[row] = True
        overlap[row], overlap[:, column] = 0.0, 0.0
    return found


def _mask(drawing: Mask, other: Drawing | None) -> Data:
    values = drawing.unpack()
    classes, counts = np.unique(values, return_counts=True)
    pixels = np.zeros((*values.shape, 4), np.uint8)
    for label in classes[classes > 0].tolist():
        pixels[values == label] = (*_colour(label), 255)
    most = np.argsort(-counts, kind="stable")[:MAX_LEGEND]
    legend = [
        [label, _hex(_colour(label)) if label > 0 else "", fraction(counts[at] / values.size)]
        for at, label in zip(most.tolist(), classes[most].tolist(), strict=True)
    ]
    return {"uri": data_uri(pixels), "size": [drawing.width, drawing.height], "classes": legend}


def _difference(drawing: Mask, other: Mask) -> Data | None:
    """The pixels of two masks that differ."""
    try:
        one, two = drawing.unpack(), other.unpack()
    except ValueError:
        return None
    if one.shape != two.shape:
        return None
    changed = one != two
    pixels = np.zeros((*one.shape, 4), np.uint8)
    pixels[changed] = (*RED, 255)
    size = [drawing.width, drawing.height]
    return {
        "kind": "difference",
        "uri": data_uri(pixels),
        "size": size,
        "share": fraction(float(changed.mean())),
    }


def _picture(drawing: Picture, other: Drawing | None) -> Data:
    return {"uri": data_uri(drawing.unpack()), "size": [drawing.width, drawing.height]}


def _points(drawing: Points, other: Drawing | None) -> Data:
    rows = [
        list(point) if point is not None and np.isfinite(point).all() else None for point in drawing.points
    ]
    return {"rows": rows, "count": drawing.count}


def _classes(drawing: Classes, other: Drawing | None) -> Data:
    known = {one.label for one in other.classes} if isinstance(other, Classes) else None
    rows = [[one.label, _score(one.score), known is None or one.label in known] for one in drawing.classes]
    return {"rows": rows, "count": drawing.count}


def _score(score: float | None) -> str:
    if score is None or not np.isfinite(score):
        return ""
    return fraction(score) if 0 <= score <= 1 else f"{score:.3g}"


def _tokens(drawing: Tokens, other: Drawing | None) -> Data:
    same = [not isinstance(other, Tokens)] * len(drawing.tokens)
    if isinstance(other, Tokens):
        blocks = SequenceMatcher(None, other.tokens, drawing.tokens, autojunk=False).get_matching_blocks()
        for block in blocks:
            same[block.b : block.b + block.size] = [True] * block.size
    return {"rows": [list(pair) for pair in zip(drawing.tokens, same, strict=True)], "count": drawing.count}


def _numbers(drawing: Numbers, other: Drawing | None) -> Data:
    rows = ["not finite" if value is None else f"{value:.4g}" for value in drawing.numbers]
    return {"rows": rows, "count": drawing.count}


_DRAWN: dict[type, Callable[[Any, Drawing | None], Data]] = {
    Boxes: _boxes,
    Mask: _mask,
    Picture: _picture,
    Points: _points,
    Classes: _classes,
    Tokens: _tokens,
    Numbers: _numbers,
}


def _colour(label: int) -> tuple[int, int, int]:
    """A colour for a class: hues by the golden ratio, so that neighbouring classes differ."""
    shade = colorsys.hls_to_rgb((label * 0.618034) % 1, (0.5, 0.64, 0.42)[label % 3], 0.85)
    red, green, blue = (round(255 * value) for value in shade)
    return red, green, blue


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
