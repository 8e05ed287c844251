"""Second moments of the layer inputs of an ONNX graph: ``sum x x^T`` over samples and positions.

``x`` is the vector that one output value is a weighted sum of: a row of a matrix product, or a patch of a
convolution.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.quantize.calibration import Samples, ahead, session
from edgeopt.formats.second_moments import SecondMoments
from edgeopt.model import Array

MOST_BYTES = 256 << 20
"""Memory limit for all moments together; beyond it, the widest layers are skipped."""
FEWEST_POSITIONS = 64
"""Smallest number of positions per sample, so that every sample counts."""
POSITIONS_PER_WEIGHT = 16
"""Number of positions of all samples together, as a multiple of the width of the matrix. More take longer and
change nothing, because neighbouring patches are highly correlated."""


class Moments(NamedTuple):
    """What is kept of the inputs ``x`` of one layer, of all positions that were taken."""

    central: NDArray[np.float64]
    """``sum (x - mean) (x - mean)^T``, ``[groups, width, width]``."""
    mean: NDArray[np.float64]
    """``[groups, width]``."""
    positions: int

    @property
    def second(self) -> NDArray[np.float64]:
        """``sum x x^T``."""
        return self.central + self.positions * self.mean[:, :, np.newaxis] * self.mean[:, np.newaxis]


class _Sums:
    """Sums over the inputs of one layer.

    They are those of the differences from the mean of the first sample: inputs that hardly vary would lose
    their variance in the rounding of float32.
    """

    def __init__(self) -> None:
        self.offset: Any = None
        self.first: Any = 0.0
        self.second = SecondMoments()
        self.positions = 0

    def add(self, rows: Array) -> None:
        """Add rows ``[groups, positions, width]``."""
        if self.offset is None:
            self.offset = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        rows = np.asarray(rows - self.offset)
        self.second.add(rows)
        self.first = self.first + rows.sum(axis=1, dtype=np.float64)
        self.positions += rows.shape[1]

    def moments(self) -> Moments | None:
        """The moments; afterwards, nothing can be added."""
        if self.offset is None or self.second.matrix is None:
            return None
        shift = self.first / self.positions
        for total, first, mean in zip(self.second.matrix, self.first, shift, strict=True):
            total -= np.outer(first, mean)
        return Moments(self.second.matrix, self.offset[:, 0] + shift, self.positions)


class Reader(NamedTuple):
    """A layer whose input moments are collected."""

    node: Any
    shape: tuple[int, ...]
    groups: int

    @property
    def name(self) -> str:
        return str(self.node.name or self.node.output[0])

    @property
    def width(self) -> int:
        """Number of weights of one output value."""
        return prod(self.shape[1:]) if self.node.op_type == "Conv" else max(self.shape[self.axis], 1)

    @property
    def bytes(self) -> int:
        return 8 * self.groups * self.width**2

    @property
    def axis(self) -> int:
        return 1 if self.node.op_type == "Gemm" and _option(self.node, "transB", 0) else 0

    def rows(self, values: Array, most: int, random: np.random.Generator) -> Array:
        """Inputs of at most ``most`` positions, chosen at random, as ``[groups, positions, width]``."""
        if self.node.op_type != "Conv":
            inputs = values.reshape(-1, values.shape[-1])
            return inputs[_chosen(len(inputs), most, random)][np.newaxis]
        taps, inside = _taps(values.shape, self.node, self.shape[2:], most, random)
        channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        patches = np.take(channels, taps, axis=1, mode="clip")  # [channels, positions, kernel]
        if not inside.all():
            patches = patches * inside
        grouped = patches.reshape(self.groups, -1, *taps.shape).transpose(0, 2, 1, 3)
        return grouped.reshape(self.groups, len(taps), -1)


def collect(prepared: Path, samples: Samples, count: int) -> dict[str, Moments]:
    """Moments of the inputs of each supported layer, by layer name.

    ``count`` is the number of samples: of few samples, more positions of each are taken.
    """
    readers = _affordable(_readers(onnx_model_file.load(prepared)))
    sums = {reader.name: _Sums() for reader in readers}
    run = _Run(prepared, readers)
    random = np.random.default_rng(0)
    for _, values in ahead(run, samples):
        for reader in readers:
            most = max(FEWEST_POSITIONS, POSITIONS_PER_WEIGHT * reader.width // max(count, 1))
            rows = reader.rows(values[reader.node.input[0]], most, random)
            sums[reader.name].add(rows.astype(np.float32, copy=False))
    return {name: found for name, each in sums.items() if (found := each.moments()) is not None}


class _Run:
    """A session of the graph with the inputs of all readers as additional outputs."""

    def __init__(self, prepared: Path, readers: Sequence[Reader]) -> None:
        import onnx

        proto = onnx_model_file.load(prepared)
        inputs = {value.name for value in proto.graph.input}
        outputs = {value.name for value in proto.graph.output}
        self.names = [n for n in dict.fromkeys(reader.node.input[0] for reader in readers) if n not in inputs]
        values = {value.name: value for value in proto.graph.value_info}
        proto.graph.output.extend(values[name] for name in self.names if name not in outputs)
        path = prepared.with_name("inner.onnx")
        onnx.save(proto, str(path))
        self.session = session(path)

    def __call__(self, sample: dict[str, Array]) -> dict[str, Array]:
        if not self.names:
            return sample
        return {**sample, **dict(zip(self.names, self.session.run(self.names, sample), strict=True))}


def _readers(proto: Any) -> list[Reader]:
    """Convolutions and two-dimensional matrix products with constant weights and a computed input."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    known = {value.name for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    readers = []
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[0] not in known - set(constants):
            continue
        tensor = constants.get(node.input[1])
        # A transposed input or a batched product has no fixed vector per output value.
        if tensor is None or (node.op_type != "Conv" and len(tensor.dims) != 2) or _option(node, "transA", 0):
            continue
        readers.append(Reader(node, tuple(tensor.dims), _option(node, "group", 1)))
    return readers


def _affordable(readers: Sequence[Reader]) -> list[Reader]:
    """The narrowest readers whose moments fit into ``MOST_BYTES``."""
    kept, size = [], 0
    for reader in sorted(readers, key=lambda reader: reader.bytes):
        size += reader.bytes
        if size <= MOST_BYTES:
            kept.append(reader)
    return kept


def _option(node: Any, name: str, default: Any) -> Any:
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _chosen(count: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of the positions to take from ``count``."""
    # An even spacing would meet the same columns of a picture again and again.
    return np.sort(random.choice(count, most, replace=False)) if count > most else np.arange(count)


def _taps(
    shape: tuple[int, ...], node: Any, kernel: tuple[int, ...], most: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """What a convolution reads at some of its positions, both ``[positions, kernel]``.

    Returns the index into the flattened batch and space of the input ``[n, channels, *spatial]``, and whether
    it is inside; only what is chosen is touched, because whole inputs are large.
    """
    batch, _, *space = shape
    rank = len(kernel)
    strides = _option(node, "strides", [1] * rank)
    dilations = _option(node, "dilations", [1] * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    padding = _padding(tuple(space), node, reach, strides)
    sizes = (
        (size + sum(pads) - span) // step + 1
        for size, pads, span, step in zip(space, padding, reach, strides, strict=True)
    )
    places = (batch, *sizes)
    sample, *position = np.unravel_index(_chosen(prod(places), most, random), places)
    taps = sample[:, np.newaxis]
    inside = np.ones_like(taps, bool)
    for axis in range(rank):
        start = position[axis] * strides[axis] - padding[axis][0]
        at = (start[:, np.newaxis] + dilations[axis] * np.arange(kernel[axis]))[:, np.newaxis]
        within = (at >= 0) & (at < space[axis])
        taps = (taps[:, :, np.newaxis] * space[axis] + at).reshape(len(taps), -1)
        inside = (inside[:, :, np.newaxis] & within).reshape(len(taps), -1)
    return taps, inside


def _padding(
    space: tuple[int, ...], node: Any, reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, from ``pads`` or ``auto_pad`` (ONNX operator Conv)."""
    auto = _option(node, "auto_pad", b"NOTSET").decode()
    rank = len(space)
    if not auto.startswith("SAME"):
        pads = _option(node, "pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
        return list(zip(pads[:rank], pads[rank:], strict=True))
    result = []
    for size, span, step in zip(space, reach, strides, strict=True):
        # SAME: the output size is the input size divided by the stride, rounded up.
        total = max((-(-size // step) - 1) * step + span - size, 0)
        less, more = total // 2, total - total // 2
        result.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return result
