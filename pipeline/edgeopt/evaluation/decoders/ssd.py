"""Heads of SSD: offsets from anchors."""

import math
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from edgeopt.errors import UsageError
from edgeopt.evaluation.boxes import Boxes, corners
from edgeopt.evaluation.decoders._nms import BoxDecoder, named, sigmoid
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Outputs
from edgeopt.plugin import ExistingPath


class Ssd(BoxDecoder):
    """Decodes ``boxes [n, k, 4]`` and ``scores [n, k, classes]`` with k anchors (Liu et al. 2016).

    The centre of a box is that of its anchor, moved by offset / variance × the size of the anchor; the size
    is that of the anchor × exp(offset / variance). Anchors are centre y, centre x, height, width, relative
    to the image: from a file, or generated in the order of levels, rows, columns, ratios. At level i, the
    anchor of a ratio r (width to height) is scale[i] / √r high and scale[i] × √r wide.
    """

    boxes: str = Field("boxes", description="name of the output of offsets")
    scores: str = Field("scores", description="name of the output of scores")
    size: tuple[PositiveInt, PositiveInt] = Field(description="height and width of the model input")
    anchors: ExistingPath | None = Field(
        None, description=".npy file with anchors [k, 4]: centre y, centre x, height, width, relative"
    )
    strides: tuple[PositiveInt, ...] = Field((), description="pixels per cell of each level, without a file")
    scales: tuple[PositiveFloat, ...] = Field((), description="size of the anchors of each level, relative")
    ratios: tuple[PositiveFloat, ...] = Field((1.0,), min_length=1, description="width to height")
    interpolated: bool = Field(
        False,
        description="one more anchor per cell: a square of the geometric mean of this scale and the next",
    )
    variances: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (10.0, 10.0, 5.0, 5.0), description="divisors of the offsets: y, x, height, width"
    )
    offsets: Literal["yxhw", "xywh"] = Field("yxhw", description="order of the four offsets")
    activation: Literal["sigmoid", "softmax", "none"] = Field(
        "sigmoid", description="function of the scores; none: they are probabilities"
    )
    background: bool = Field(
        True, description="whether the first class is the background, which is left out of the result"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.anchors is None) == (not self.strides):
            raise ValueError("set either 'anchors', or 'strides' and 'scales'")
        if len(self.strides) != len(self.scales):
            raise ValueError(f"{len(self.strides)} strides but {len(self.scales)} scales")
        return self

    def apply(self, outputs: Outputs) -> Outputs:
        """Outputs ``boxes`` in pixels, ``scores`` and ``classes``, after suppression.

        Raises:
            UsageError: outputs or anchors are missing or of another shape, or their numbers differ.
        """
        offsets, scores = (named(outputs, name, "ssd") for name in (self.boxes, self.scores))
        if offsets.ndim != 3 or offsets.shape[2] != 4:
            raise UsageError(
                f"ssd: the output {self.boxes!r} has shape {list(offsets.shape)}, not [n, k, 4]",
                fix="set 'boxes' to the output of offsets",
            )
        least = 2 if self.background else 1
        if scores.ndim != 3 or scores.shape[:2] != offsets.shape[:2] or scores.shape[2] < least:
            n, k = offsets.shape[:2]
            raise UsageError(
                f"ssd: the output {self.scores!r} has shape {list(scores.shape)}, not [{n}, {k}, classes]"
                + (" with a background and at least one class" if self.background else ""),
                fix="set 'scores' to the output of class scores",
            )
        anchors = self._anchors()
        if len(anchors) != offsets.shape[1]:
            raise UsageError(
                f"ssd: the output {self.boxes!r} of shape {list(offsets.shape)} has {offsets.shape[1]} boxes "
                f"per sample, but there are {len(anchors)} anchors",
                fix="use the anchors that the model was trained with",
            )
        probabilities = self._activated(scores)[..., 1 if self.background else 0 :]
        return self.suppressed(self._boxes(offsets, anchors), probabilities)

    def _boxes(self, offsets: NDArray[np.float64], anchors: NDArray[np.float64]) -> Boxes:
        if self.offsets == "xywh":
            offsets = offsets[..., [1, 0, 3, 2]]
        with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite are dropped
            scaled = offsets / np.asarray(self.variances)
            centres = scaled[..., :2] * anchors[:, 2:] + anchors[:, :2]
            sizes = np.exp(scaled[..., 2:]) * anchors[:, 2:]
            relative = np.concatenate([centres[..., ::-1], sizes[..., ::-1]], axis=-1)
            boxes: Boxes = corners(relative, "cxcywh") * np.tile(self.size[::-1], 2)
        return boxes

    def _activated(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.activation == "sigmoid":
            return sigmoid(scores)
        if self.activation == "softmax":
            with np.errstate(invalid="ignore"):
                powers = np.exp(scores - scores.max(axis=2, keepdims=True))
            normalized: NDArray[np.float64] = powers / powers.sum(axis=2, keepdims=True)
            return normalized
        return scores

    def _anchors(self) -> NDArray[np.float64]:
        """Anchors ``[k, 4]``: centre y, centre x, height, width, relative to the image."""
        if self.anchors is None:
            return np.concatenate([self._level(at) for at in range(len(self.strides))])
        try:
            anchors = np.load(self.anchors, allow_pickle=False)
            if not isinstance(anchors, np.ndarray):
                raise ValueError("it is an archive of several arrays")
        except (OSError, *MALFORMED) as error:
            raise UsageError(
                f"ssd: cannot read the anchors {self.anchors}: {error}", fix="save them with numpy.save"
            ) from error
        if anchors.ndim != 2 or anchors.shape[1] != 4 or anchors.dtype.kind not in "iuf":
            raise UsageError(
                f"ssd: the anchors {self.anchors} have shape {list(anchors.shape)} and dtype "
                f"{anchors.dtype}, not numbers [k, 4]",
                fix="save centre y, centre x, height and width of each anchor, relative to the image",
            )
        anchors = anchors.astype(np.float64)
        if not np.isfinite(anchors).all() or (anchors[:, 2:] <= 0).any():
            raise UsageError(
                f"ssd: the anchors {self.anchors} contain values that are not finite, or sizes that are not "
                "positive",
                fix="save centre y, centre x, height and width of each anchor, relative to the image",
            )
        return anchors

    def _level(self, at: int) -> NDArray[np.float64]:
        stride, scale = self.strides[at], self.scales[at]
        sizes = [(scale / math.sqrt(ratio), scale * math.sqrt(ratio)) for ratio in self.ratios]
        if self.interpolated:
            following = self.scales[at + 1] if at + 1 < len(self.scales) else 1.0
            sizes.append((math.sqrt(scale * following),) * 2)
        height, width = self.size
        rows, columns = (np.arange(math.ceil(length / stride)) + 0.5 for length in self.size)
        grid = np.stack(np.meshgrid(rows * stride / height, columns * stride / width, indexing="ij"), axis=-1)
        centres = np.broadcast_to(grid[:, :, None], (*grid.shape[:2], len(sizes), 2))
        return np.concatenate([centres, np.broadcast_to(sizes, centres.shape)], axis=-1).reshape(-1, 4)
