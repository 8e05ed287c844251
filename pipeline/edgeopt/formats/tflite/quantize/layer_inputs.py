"""What the layers of a quantized TFLite file read: second moments of their inputs, over calibration samples.

Inputs are in steps of their quantization, with the zero point at 0, so that padding is 0.
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.tflite.files.graphs import Operation
from edgeopt.model import Array

ROWS = 64
"""Inputs per weight of an output from which the moments are estimated, if there are as many."""
LEAST, POSITIONS = 4, 64
"""Fewest and most positions of one sample that count: neighbours have almost equal inputs."""
AT_ONCE = 2048
"""Inputs that are multiplied at once."""

Numbers = NDArray[np.float64]
Single = NDArray[np.float32]


class Geometry:
    """Where a layer reads its inputs, and the order of its weights.

    ``width`` weights make one output value. The output channels of one of ``groups`` read the same inputs.
    """

    def __init__(self, operation: Operation) -> None:
        data, weights = operation.inputs[0], operation.inputs[1]
        assert data is not None and weights is not None  # a layer
        self.kind, self.shape = operation.kind, weights.shape
        self.is_depthwise = self.kind == "DEPTHWISE_CONV_2D"
        self.places: NDArray[np.intp] | None = None
        """``[positions, kernel]``: what each output reads, as a position of the padded input."""
        if self.kind == "FULLY_CONNECTED":
            self.groups, self.width = 1, weights.shape[1]
            return
        kernel, depth = weights.shape[1:3], 1 if self.is_depthwise else weights.shape[3]
        self.groups, self.width = data.shape[3] // depth, kernel[0] * kernel[1] * depth
        options = operation.table.table("builtin_options")
        assert options is not None  # a convolution has strides
        axes = []
        for size, taps, letter in zip(data.shape[1:3], kernel, "hw", strict=True):
            stride = options.integer(f"stride_{letter}")
            dilation = options.integer(f"dilation_{letter}factor", 1)
            axes.append(_axis(size, taps, stride, dilation, same=not options.integer("padding")))
        (self.rows, before, high), (self.columns, left, wide) = axes
        self.padding = (before, high), (left, wide)
        width = data.shape[2] + left + wide
        reads = self.rows[:, np.newaxis, :, np.newaxis] * width + self.columns[:, np.newaxis]
        self.places = reads.reshape(len(self.rows) * len(self.columns), -1)

    def inputs(self, values: Array, chosen: NDArray[np.intp]) -> Single:
        """What the outputs at the ``chosen`` positions read: ``[groups, positions, width]``."""
        if self.places is None:
            return values.reshape(1, -1, self.width).astype(np.float32)
        places = self.places[chosen]
        padded = np.pad(values, ((0, 0), *self.padding, (0, 0)))
        read = padded.reshape(-1, padded.shape[3])[places]  # [positions, kernel, channels]
        grouped = read.reshape(*read.shape[:2], self.groups, -1).transpose(2, 0, 1, 3)
        return grouped.reshape(self.groups, len(places), self.width).astype(np.float32)

    def by_row(self, weights: Array) -> Numbers:
        """The weights of a tensor as ``[groups * outputs, width]``."""
        rows = np.moveaxis(weights, -1, 0) if self.is_depthwise else weights
        return rows.reshape(-1, self.width).astype(np.float64)

    def by_tensor(self, rows: Array) -> Array:
        """The tensor of weights ``[groups * outputs, width]``."""
        if self.is_depthwise:
            return np.moveaxis(rows.reshape(-1, *self.shape[:3]), 0, -1)
        return rows.reshape(self.shape)


def _axis(
    size: int, taps: int, stride: int, dilation: int, *, same: bool
) -> tuple[NDArray[np.intp], int, int]:
    """What the outputs along one axis read ``[outputs, taps]``, and the padding before and after it."""
    extent = (taps - 1) * dilation + 1
    outputs = -(-size // stride) if same else (size - extent) // stride + 1
    padding = max((outputs - 1) * stride + extent - size, 0) if same else 0
    starts = np.arange(outputs, dtype=np.intp)[:, np.newaxis] * stride
    return starts + np.arange(taps, dtype=np.intp) * dilation, padding // 2, padding - padding // 2


class Moments:
    """Means and second moments of the inputs of a layer in two files, original and changed.

    Args:
        geometry: of the layer.
        samples: how many will be added; with many samples, few positions of each suffice.
    """

    def __init__(self, geometry: Geometry, samples: int) -> None:
        self.geometry = geometry
        self.positions = max(LEAST, min(POSITIONS, -(-ROWS * geometry.width // max(samples, 1))))
        self.random = np.random.default_rng(0)  # the same positions in every run
        shape = geometry.groups, geometry.width
        self.means = np.zeros((2, *shape))
        self.own = np.zeros((*shape, geometry.width))
        """``sum x x^T`` of the changed file."""
        self.cross = np.zeros_like(self.own)
        """``sum y x^T`` of the original and the changed file."""
        self.count = 0
        self.waiting: list[tuple[Single, Single]] = []

    def add(self, original: Array, changed: Array | None = None) -> None:
        """Count one sample: the input of the layer in both files; None: the same."""
        places = self.geometry.places
        count = 1 if places is None else len(places)
        if count <= self.positions:
            chosen = np.arange(count)
        else:
            chosen = (self.random.random(self.positions) * count).astype(np.intp)
        before = self.geometry.inputs(original, chosen)
        self.waiting.append((before, before if changed is None else self.geometry.inputs(changed, chosen)))
        # One product of many rows takes a fraction of the time of many small ones.
        if sum(rows.shape[1] for rows, _ in self.waiting) >= AT_ONCE:
            self._count()

    def _count(self) -> None:
        if not self.waiting:
            return
        same = all(before is after for before, after in self.waiting)
        after = np.concatenate([rows for _, rows in self.waiting], axis=1)
        before = after if same else np.concatenate([rows for rows, _ in self.waiting], axis=1)
        self.waiting.clear()
        self.count += before.shape[1]
        self.means += np.stack([before.sum(axis=1), after.sum(axis=1)])
        own = np.matmul(after.transpose(0, 2, 1), after)
        self.own += own
        self.cross += own if same else np.matmul(before.transpose(0, 2, 1), after)

    def centred(self) -> tuple[Numbers, Numbers, Numbers]:
        """The means ``[2, groups, width]``, and both matrices around them ``[groups, width, width]``."""
        self._count()
        means = self.means / self.count
        own = self.own / self.count - means[1][:, :, np.newaxis] * means[1][:, np.newaxis]
        cross = self.cross / self.count - means[0][:, :, np.newaxis] * means[1][:, np.newaxis]
        return means, own, cross
