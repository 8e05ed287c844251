"""The interface for comparing a float and a quantized file of a model, layer by layer.

The layers are those whose output exists in both files. ``each`` runs every layer in isolation on given
values, to separate the error that a layer adds from the error of its inputs.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from edgeopt.model import Array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Values: TypeAlias = Mapping[str, Array]
"""Float values by the key of the layer that outputs them; includes the model's inputs."""

INPUT = "input"
"""Operator of a pseudo-layer for a model input; its error is that of quantizing the input."""


class Grid(NamedTuple):
    """The values that a quantized tensor can represent: ``low`` to ``high`` in steps of ``step``."""

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, scale: float, zero_point: int, dtype: str) -> "Grid":
        """The grid of stored integers: ``real = (stored - zero_point) * scale``."""
        import numpy as np

        limits = np.iinfo(dtype)
        return cls((limits.min - zero_point) * scale, (limits.max - zero_point) * scale, scale)

    def snap(self, values: Array) -> "NDArray[np.float32]":
        """Quantize and dequantize: the nearest grid values, clipped to the range."""
        import numpy as np

        steps = np.rint((np.asarray(values, np.float64) - self.low) / self.step)
        real = self.low + np.clip(steps, 0, round((self.high - self.low) / self.step)) * self.step
        return real.astype(np.float32)


class Weights(NamedTuple):
    """The quantized weights of a layer."""

    dtype: str
    per_channel: bool
    largest: "NDArray[np.float64]"
    """Largest absolute weight per output channel; at least half a step, the resolution of the integers."""
    levels: int
    """Largest absolute integer of the output channel with the smallest weights."""
    by_input: "NDArray[np.float64]"
    """Largest absolute integer per input channel, in steps of the output channels; at least half a step."""

    @classmethod
    def of(
        cls, stored: Array, scale: Array, zero_point: Array, axis: int, input_axis: int | None = None
    ) -> "Weights":
        """Compute from stored integers.

        Args:
            stored: integer weights.
            scale: one scale, or one per output channel.
            zero_point: one zero point, or one per output channel.
            axis: axis of the output channels.
            input_axis: axis of the input channels; None for depthwise weights.
        """
        import numpy as np

        moved = np.moveaxis(stored.astype(np.int64), axis, 0).reshape(stored.shape[axis], -1)
        # reshape(-1, 1) broadcasts both per-tensor and per-channel zero points.
        steps = np.abs(moved - zero_point.astype(np.int64).reshape(-1, 1)).max(axis=1)
        real = np.maximum(steps, 0.5) * scale.astype(np.float64).reshape(-1)
        by_input = np.ones(1)
        if input_axis is not None:
            last = np.moveaxis(stored.astype(np.int64), axis, -1)
            centred = np.moveaxis(np.abs(last - zero_point.astype(np.int64).reshape(-1)), -1, axis)
            rows = np.moveaxis(centred, input_axis, 0).reshape(stored.shape[input_axis], -1)
            by_input = np.maximum(rows.max(axis=1), 0.5)
        return cls(str(stored.dtype), scale.size > 1, real, int(steps.min()), by_input)


class Layer(NamedTuple):
    """A layer of both files; ``key`` is the name of its output tensor in the float file."""

    key: str
    name: str
    operator: str
    grid: Grid | None
    """Grid of its output; None if the output stays in float."""
    weights: Weights | None
    sources: tuple[str, ...]
    """Keys of the layers whose outputs it reads."""
    channels_last: bool


class Each(NamedTuple):
    """Outputs of isolated layers for the same inputs: float, quantized kernels, and simulated in float."""

    reference: Values
    quantized: Values
    written: Values | None
    """The quantized graph computed in float arithmetic; None if the runtime has only one implementation."""


class Pair(Protocol):
    """Two open files of one model; ``inputs`` of all methods are one float sample of batch 1."""

    layers: list[Layer]
    """In execution order, the inputs of the model first."""
    outputs: list[str]
    """Keys of the layers of the model's outputs, in their order."""
    unmatched: list[str]
    """Layers of the float file that are missing or fused in the quantized file."""

    def reference(self, inputs: Sequence[Array]) -> Values:
        """Outputs of all layers in the float file."""

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        """Outputs of all layers in the quantized file; ``written`` as in `Each`, None if unavailable."""

    def each(self, values: Values) -> Each:
        """Run every layer of both files in isolation, with inputs taken from ``values``."""

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Values:
        """The model's outputs in the float file with ``error`` added to the output of layer ``key``."""


def named(name: str, key: str) -> str:
    """Display name of a layer: the name of its operator, else of its output tensor."""
    return name or key


def in_step(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Index pairs of the matching operators of two sequences, in order."""
    for block in difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            yield block.a + offset, block.b + offset
