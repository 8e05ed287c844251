"""A float file and a quantized file of one model side by side, layer by layer: what every format offers.

The layers are those whose output both files have. ``each`` runs every layer by itself on given values,
so that what one layer adds to the error is told apart from what it was handed.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array

Values: TypeAlias = Mapping[str, Array]
"""Real values by the key of the layer that gives them; the model's inputs are among them."""

INPUT = "input"
"""The operator of a layer that is an input of the model: what is lost when it is quantized."""


class Grid(NamedTuple):
    """The values that a quantized tensor can take: from ``low`` to ``high`` in steps."""

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, scale: float, zero_point: int, dtype: str) -> "Grid":
        """The grid of stored integers: ``real = (stored - zero_point) * scale``."""
        limits = np.iinfo(dtype)
        return cls((limits.min - zero_point) * scale, (limits.max - zero_point) * scale, scale)

    def snap(self, values: Array) -> NDArray[np.float32]:
        """The nearest values on the grid."""
        steps = np.rint((np.asarray(values, np.float64) - self.low) / self.step)
        real = self.low + np.clip(steps, 0, round((self.high - self.low) / self.step)) * self.step
        return real.astype(np.float32)


class Weights(NamedTuple):
    """The quantized weights of a layer."""

    dtype: str
    per_channel: bool
    largest: NDArray[np.float64]
    """Per output channel, the largest absolute weight; not below half a step, the least that is known."""
    levels: int
    """Steps from zero that the output channel with the smallest weights has."""
    by_input: NDArray[np.float64]
    """Per input channel, the largest absolute weight in steps of its output channel, in the same way."""

    @classmethod
    def of(
        cls, stored: Array, scale: Array, zero_point: Array, axis: int, input_axis: int | None = None
    ) -> "Weights":
        """From stored integers.

        Args:
            axis: that of the output channels, in weights and scales alike.
            input_axis: that of the input channels; none where each output channel reads one of its own.
        """
        moved = np.moveaxis(stored.astype(np.int64), axis, 0).reshape(stored.shape[axis], -1)
        # One scale for all, or one per channel.
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
    """One layer that both files have; ``key`` is the tensor it gives, as the float file calls it."""

    key: str
    name: str
    operator: str
    grid: Grid | None
    """Of its output; None where that stays in float."""
    weights: Weights | None
    sources: tuple[str, ...]
    """Keys of the layers whose outputs it reads."""
    channels_last: bool


class Each(NamedTuple):
    """Every layer by itself, on the same values: in float, as the runtime does it, and as it is written."""

    reference: Values
    quantized: Values
    written: Values | None
    """The same quantized arithmetic carried out in float; None where a runtime has one way only."""


class Pair(Protocol):
    """Two files of one model, opened; ``inputs`` of all methods are one sample of batch 1 in float."""

    layers: list[Layer]
    """In the order of execution; the inputs of the model first."""
    output: str
    """Key of the layer that gives the first output."""
    unmatched: list[str]
    """Layers of the float file that the quantized one lacks, or merged into others."""

    def reference(self, inputs: Sequence[Array]) -> Values:
        """What every layer gives in the float file."""

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        """The same in the quantized file; ``written`` as in ``Each``, None where that cannot be had."""

    def each(self, values: Values) -> Each:
        """Run every layer of both files on ``values``, whatever the layers before it give."""

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Array:
        """The first output of the float file with an error added to what one layer gives."""


def named(name: str, key: str) -> str:
    """How a layer is called: by the name of its operator, or else by the tensor it gives."""
    return name or key


def in_step(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places at which two sequences of operators agree, in order."""
    for block in difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            yield block.a + step, block.b + step
