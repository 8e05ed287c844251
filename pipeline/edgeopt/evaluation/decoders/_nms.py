"""Non-maximum suppression, and the options of the decoders that end with it."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from edgeopt.config.nearest import nearest
from edgeopt.errors import UsageError
from edgeopt.evaluation.boxes import Boxes, iou
from edgeopt.model import Outputs
from edgeopt.plugin import Decoder

NAMES = ("boxes", "scores", "classes")


class BoxDecoder(Decoder):
    """Base of the decoders: options and result of the suppression."""

    iou: float = Field(0.5, ge=0, le=1, description="IoU above which the box of the lower score is removed")
    threshold: float = Field(0.05, ge=0, le=1, description="lowest score")
    limit: PositiveInt = Field(100, description="most boxes per sample")

    def suppressed(self, boxes: Boxes, scores: NDArray[np.float64]) -> Outputs:
        """Suppress boxes ``[n, k, 4]`` by their scores ``[n, k, classes]``, class by class.

        The outputs are ``boxes [n, limit, 4]``, ``scores [n, limit]`` and ``classes [n, limit]`` by
        decreasing score, filled up with zeros. Boxes and scores that are not finite are dropped.
        """
        count = len(boxes)
        kept_boxes = np.zeros((count, self.limit, 4), np.float32)
        kept_scores = np.zeros((count, self.limit), np.float32)
        classes = np.zeros((count, self.limit), np.int64)
        for sample in range(count):
            places, categories = self._kept(boxes[sample], scores[sample])
            filled = len(places)
            kept_boxes[sample, :filled] = boxes[sample, places]
            kept_scores[sample, :filled] = scores[sample, places, categories]
            classes[sample, :filled] = categories
        return Outputs((kept_boxes, kept_scores, classes), NAMES)

    def _kept(self, boxes: Boxes, scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the boxes of one sample, and their classes, by decreasing score."""
        # A value beyond float32 would become infinite in the outputs.
        largest = np.finfo(np.float32).max
        valid = (np.abs(scores) <= largest) & (scores >= self.threshold)
        valid &= (np.abs(boxes) <= largest).all(axis=1, keepdims=True)
        places, categories = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for category in np.flatnonzero(valid.any(axis=0)):
            candidates = np.flatnonzero(valid[:, category])
            best = suppress(boxes[candidates], scores[candidates, category], self.iou, self.limit)
            places.append(candidates[best])
            categories.append(np.full(len(best), category))
        place, of = np.concatenate(places), np.concatenate(categories)
        order = np.argsort(-scores[place, of], kind="stable")[: self.limit]
        return place[order], of[order]


def suppress(boxes: Boxes, scores: NDArray[np.float64], overlap: float, limit: int) -> NDArray[np.int64]:
    """Greedy non-maximum suppression of boxes ``[k, 4]`` by their scores ``[k]``.

    Returns the positions of at most ``limit`` boxes by decreasing score, the first of equal ones first, of
    which no two have an IoU above ``overlap``.
    """
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left) and len(kept) < limit:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[iou(boxes[best : best + 1], boxes[left])[0] <= overlap]
    return np.array(kept, np.int64)


def named(outputs: Outputs, name: str, decoder: str) -> NDArray[np.float64]:
    """The output of a name, as float64.

    Raises:
        UsageError: there is none.
    """
    names = outputs.all_names()
    if name not in names:
        raise UsageError(
            f"{decoder} decodes the output {name!r}, which the model does not have{nearest(name, names)}",
            fix=f"set the options to names of its outputs: {', '.join(map(repr, names))}",
        )
    return np.asarray(outputs.arrays[names.index(name)], np.float64)


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function; does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
