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
from edgeopt.formats.onnx.quantize.calibration import Samples, session
from edgeopt.formats.second_moments import SecondMoments
from edgeopt.model import Array

MOST_BYTES = 256 << 20
"""Memory limit for all moments together; beyond it, the widest layers are skipped."""
FEWEST_POSITIONS = 64
"""Smallest number of positions per sample, so that every sample counts."""
POSITIONS_PER_WEIGHT = 64
"""Number of positions of all samples together, as a multiple of the width of the matrix. More take longer and
change nothing, because neighbouring patches are highly correlated."""

Moments = NDArray[np.float64]


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
        windows = _windows(values, self.node, self.shape[2:])  # [n, *positions, channels, *kernel]
        places = windows.shape[: values.ndim - 1]
        chosen = np.unravel_index(_chosen(prod(places), most, random), places)
        patches = windows[chosen]
        grouped = patches.reshape(len(patches), self.groups, -1)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))


def collect(prepared: Path, samples: Samples, count: int) -> dict[str, Moments]:
    """Moments ``[groups, width, width]`` of each supported layer, by layer name.

    ``count`` is the number of samples: of few samples, more positions of each are taken.
    """
    readers = _affordable(_readers(onnx_model_file.load(prepared)))
    sums = {reader.name: SecondMoments() for reader in readers}
    run = _Run(prepared, readers)
    random = np.random.default_rng(0)
    for sample in samples:
        values = run(sample)
        for reader in readers:
            most = max(FEWEST_POSITIONS, POSITIONS_PER_WEIGHT * reader.width // max(count, 1))
            rows = reader.rows(values[reader.node.input[0]], most, random)
            sums[reader.name].add(rows.astype(np.float32))
    return {name: each.matrix for name, each in sums.items() if each.matrix is not None}


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


def _windows(values: Array, node: Any, kernel: tuple[int, ...]) -> Array:
    """A view ``[n, *positions, channels, *kernel]`` of the patches of a batch ``[n, channels, *spatial]``."""
    rank = len(kernel)
    strides = _option(node, "strides", [1] * rank)
    dilations = _option(node, "dilations", [1] * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    padding = [(0, 0), (0, 0), *_padding(values.shape[2:], node, reach, strides)]
    padded = np.pad(values, padding) if np.any(padding) else values
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = (*[slice(None, None, step) for step in strides], *[slice(None, None, step) for step in dilations])
    return np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, 1 + rank)


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
