"""Heads of detectors without anchors: one box per cell of several grids."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from edgeopt.errors import UsageError
from edgeopt.evaluation.boxes import Boxes, corners
from edgeopt.evaluation.decoders._nms import BoxDecoder, named, sigmoid
from edgeopt.model import Layout, Outputs


class Grid(BoxDecoder):
    """Decodes grids ``[n, 4 + classes, h, w]`` (or ``[n, h, w, 4 + classes]``), one per stride.

    The four values of a cell are distances to the left, top, right and bottom side of the box from the
    centre of the cell, in cells (FCOS, Tian et al. 2019; YOLOv8). Or they are the centre of the box from the
    corner of the cell, and the logarithms of width and height, in cells (YOLOX, Ge et al. 2021). The others
    are logits of the classes.
    """

    strides: tuple[PositiveInt, ...] = Field(min_length=1, description="pixels per cell of each grid")
    outputs: tuple[str, ...] = Field(
        (), description="names of the outputs in the order of 'strides'; default: all outputs"
    )
    layout: Layout = Field("NCHW", description="position of the values of a cell among the axes")
    box: Literal["ltrb", "cxcywh"] = Field("ltrb", description="distances, or centre and log size")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if self.outputs and len(self.outputs) != len(self.strides):
            raise ValueError(f"{len(self.outputs)} outputs but {len(self.strides)} strides")
        return self

    def apply(self, outputs: Outputs) -> Outputs:
        """Outputs ``boxes`` in pixels, ``scores`` and ``classes``, after suppression.

        Raises:
            UsageError: an output is missing or of another shape.
        """
        names = self.outputs or outputs.all_names()
        if len(names) != len(self.strides):
            raise UsageError(
                f"grid decodes one output per stride, but there are {len(self.strides)} strides and "
                f"{len(names)} outputs: {', '.join(map(repr, names))}",
                fix="set 'outputs' to the names of the grids, in the order of 'strides'",
            )
        grids = [self._cells_last(named(outputs, name, "grid"), name) for name in names]
        self._check_classes(grids, names)
        boxes = np.concatenate(
            [self._boxes(grid[..., :4], stride) for grid, stride in zip(grids, self.strides, strict=True)],
            axis=1,
        )
        logits = np.concatenate(
            [grid[..., 4:].reshape(len(grid), -1, grid.shape[3] - 4) for grid in grids], axis=1
        )
        return self.suppressed(boxes, sigmoid(logits))

    def _cells_last(self, grid: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        """The grid as ``[n, h, w, 4 + classes]``."""
        if grid.ndim != 4 or grid.shape[1 if self.layout == "NCHW" else 3] < 5:
            axes = "[n, 4 + classes, h, w]" if self.layout == "NCHW" else "[n, h, w, 4 + classes]"
            raise UsageError(
                f"grid: the output {name!r} has shape {list(grid.shape)}, not {axes}",
                fix="set 'outputs' to the names of the grids, and 'layout' to their layout",
            )
        return grid.transpose(0, 2, 3, 1) if self.layout == "NCHW" else grid

    @staticmethod
    def _check_classes(grids: Sequence[NDArray[np.float64]], names: Sequence[str]) -> None:
        first = grids[0]
        for grid, name in zip(grids, names, strict=True):
            if (len(grid), grid.shape[3]) != (len(first), first.shape[3]):
                raise UsageError(
                    f"grid: the output {name!r} has {len(grid)} samples of {grid.shape[3]} values per cell, "
                    f"but {names[0]!r} has {len(first)} of {first.shape[3]}",
                    fix="set 'outputs' to grids of the same classes, and 'layout' to their layout",
                )

    def _boxes(self, values: NDArray[np.float64], stride: int) -> Boxes:
        """Boxes ``[n, h * w, 4]`` in pixels of values ``[n, h, w, 4]``."""
        count, height, width = values.shape[:3]
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        cells = np.stack([columns, rows], axis=-1).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite are dropped
            if self.box == "ltrb":
                first, second = cells + 0.5 - values[..., :2], cells + 0.5 + values[..., 2:]
                boxes = np.concatenate([first, second], axis=-1)
            else:
                centre, size = cells + values[..., :2], np.exp(values[..., 2:])
                boxes = corners(np.concatenate([centre, size], axis=-1), "cxcywh")
            return (boxes * stride).reshape(count, -1, 4)
