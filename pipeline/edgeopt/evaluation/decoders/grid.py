"""Heads of detectors without anchors: one box per cell of several grids."""

import math
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

    With ``size``, one output ``[n, 4 + classes, cells]`` (or ``[n, cells, 4 + classes]``) contains the cells
    of all grids: one grid after the other in the order of ``strides``, each row by row. A grid has
    ceil(height / stride) rows and ceil(width / stride) columns.

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
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="height and width of the model input, if one output contains the cells of all grids"
    )

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if self.size is not None:
            if len(self.outputs) > 1:
                raise ValueError(f"{len(self.outputs)} outputs, but with 'size' one contains all grids")
        elif self.outputs and len(self.outputs) != len(self.strides):
            raise ValueError(f"{len(self.outputs)} outputs but {len(self.strides)} strides")
        return self

    def apply(self, outputs: Outputs) -> Outputs:
        """Outputs ``boxes`` in pixels, ``scores`` and ``classes``, after suppression.

        Raises:
            UsageError: an output is missing or of another shape.
        """
        names = self.outputs or outputs.all_names()
        grids = self._grids(outputs, names) if self.size is None else self._split(outputs, names, self.size)
        boxes = np.concatenate(
            [self._boxes(grid[..., :4], stride) for grid, stride in zip(grids, self.strides, strict=True)],
            axis=1,
        )
        logits = np.concatenate(
            [grid[..., 4:].reshape(len(grid), -1, grid.shape[3] - 4) for grid in grids], axis=1
        )
        return self.suppressed(boxes, sigmoid(logits))

    def _grids(self, outputs: Outputs, names: Sequence[str]) -> list[NDArray[np.float64]]:
        """The grids ``[n, h, w, 4 + classes]`` of one output each."""
        if len(names) != len(self.strides):
            raise UsageError(
                f"grid decodes one output per stride, but there are {len(self.strides)} strides and "
                f"{len(names)} outputs: {', '.join(map(repr, names))}",
                fix="set 'outputs' to the names of the grids, in the order of 'strides'"
                + ("; if one output contains all grids, set 'size'" if len(names) == 1 else ""),
            )
        grids = [self._cells_last(named(outputs, name, "grid"), name) for name in names]
        self._check_classes(grids, names)
        return grids

    def _split(
        self, outputs: Outputs, names: Sequence[str], size: tuple[int, int]
    ) -> list[NDArray[np.float64]]:
        """The grids ``[n, h, w, 4 + classes]`` of an output that contains the cells of all of them."""
        if len(names) != 1:
            raise UsageError(
                f"grid with 'size' decodes one output with the cells of all grids, but there are "
                f"{len(names)}: {', '.join(map(repr, names))}",
                fix="set 'outputs' to its name; for one output per stride, leave 'size' out",
            )
        (name,) = names
        values = named(outputs, name, "grid")
        shapes = [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in self.strides]
        counts = [height * width for height, width in shapes]
        cells, channels = (2, 1) if self.layout == "NCHW" else (1, 2)
        if values.ndim != 3 or values.shape[cells] != sum(counts) or values.shape[channels] < 5:
            axes = f"[n, 4 + classes, {sum(counts)}]" if cells == 2 else f"[n, {sum(counts)}, 4 + classes]"
            grids = ", ".join(
                f"{height} × {width} of stride {stride}"
                for (height, width), stride in zip(shapes, self.strides, strict=True)
            )
            raise UsageError(
                f"grid: the output {name!r} has shape {list(values.shape)}, not {axes}, the cells of an "
                f"input of {size[0]} × {size[1]} pixels: {grids}",
                fix=self._fix_of_split(values, sum(counts)),
            )
        rows = values.transpose(0, 2, 1) if cells == 2 else values
        parts = np.split(rows, np.cumsum(counts)[:-1], axis=1)
        return [
            part.reshape(len(part), *shape, part.shape[2]) for part, shape in zip(parts, shapes, strict=True)
        ]

    def _fix_of_split(self, values: NDArray[np.float64], cells: int) -> str:
        other: Layout = "NHWC" if self.layout == "NCHW" else "NCHW"
        if values.ndim == 3 and values.shape[2 if other == "NCHW" else 1] == cells:
            return f"set 'layout: {other}'"
        if values.ndim == 4:
            return "for one output per stride, leave 'size' out"
        return "set 'strides' and 'size' to those of the network, in the order of the cells"

    def _cells_last(self, grid: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        """The grid as ``[n, h, w, 4 + classes]``."""
        if grid.ndim != 4 or grid.shape[1 if self.layout == "NCHW" else 3] < 5:
            axes = "[n, 4 + classes, h, w]" if self.layout == "NCHW" else "[n, h, w, 4 + classes]"
            raise UsageError(
                f"grid: the output {name!r} has shape {list(grid.shape)}, not {axes}",
                fix="if the output contains the cells of all grids, set 'size'"
                if grid.ndim == 3
                else "set 'outputs' to the names of the grids, and 'layout' to their layout",
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
