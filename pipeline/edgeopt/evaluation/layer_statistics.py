"""Statistics of the layers of a float and a quantized file that run side by side.

`LayerSums` accumulates over samples, so that memory does not grow with them; `LayerStatistics` is the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.formats.calibration import Histogram
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import Layer
from edgeopt.results import snr_db

LARGEST = 1e15
"""Largest error that is recorded: sums of larger squares would overflow."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerStatistics(_Value):
    """One layer of a float and a quantized file, over all samples."""

    name: str = Field(description="name of the operator, or of its output tensor")
    operator: str
    snr_db: float = Field(description="its output in the quantized model against the float model")
    own_snr_db: float = Field(description="the same with exact inputs: the error that this layer adds")
    alone_snr_db: float = Field(description="SNR of the model's output with only this layer quantized")
    share: float = Field(description="share of the error of the model's output")
    mean_error: float = Field(description="mean error of the layer alone, in its own unit")
    bias: float = Field(description="fraction of its own error that is a shift of its channel means")
    low: float | None = Field(None, description="smallest representable value; none for float layers")
    high: float | None = None
    minimum: float = Field(description="smallest value in the float model")
    maximum: float
    clipped: float = Field(0.0, description="fraction of values outside low and high")
    clipped_noise: float = Field(0.0, description="fraction of its own error caused by them")
    outlier: float = Field(1.0, description="ratio of the largest absolute value to the 99.9th percentile")
    activation_spread: float = Field(
        1.0, description="ratio of the largest channel, over all samples, to the lower quartile"
    )
    weight_type: str | None = None
    weights_per_channel: bool | None = None
    weight_spread: float | None = Field(
        None, description="ratio of the largest to the smallest max |w| of a channel"
    )
    weight_spread_median: float | None = Field(None, description="the same, relative to the median")
    weight_spread_quartile: float | None = Field(None, description="the same, relative to the lower quartile")
    weight_levels: int | None = Field(None, description="quantization steps of the smallest channel")
    weight_input_spread: float | None = Field(
        None, description="ratio of the largest max |w| of an input channel to the lower quartile"
    )
    runtime_snr_db: float | None = Field(
        None, description="integers of the runtime against the same file in float arithmetic"
    )
    runtime_noise: float = Field(
        0.0, description="energy of that difference relative to the quantization error"
    )
    inputs: tuple[tuple[str, float], ...] = Field(
        (), description="layers that it reads, with their largest |value|"
    )


class Comparison(_Value):
    """A float and a quantized file of one model."""

    layers: tuple[LayerStatistics, ...]
    samples: int
    snr_db: float
    agreement: float | None = Field(None, description="agreement of the decisions")
    written_snr_db: float | None = Field(None, description="SNR of the quantized file in float arithmetic")
    clipped_by_data: dict[str, float] = Field(
        {}, description="largest fraction clipped in any layer, per dataset"
    )
    unmatched: tuple[str, ...] = ()

    def renamed(self, rename: Callable[[str], str]) -> "Comparison":
        """The same with other names of the layers."""
        layers = (
            layer.model_copy(
                update={
                    "name": rename(layer.name),
                    "inputs": tuple((rename(name), largest) for name, largest in layer.inputs),
                }
            )
            for layer in self.layers
        )
        return self.model_copy(
            update={"layers": tuple(layers), "unmatched": tuple(map(rename, self.unmatched))}
        )


@dataclass
class LayerSums:
    """Accumulated sums over all samples of one layer."""

    layer: Layer
    signal: float = 0.0
    noise: float = 0.0
    own_signal: float = 0.0
    own_noise: float = 0.0
    own_error: float = 0.0
    written_noise: float = 0.0
    written_signal: float = 0.0
    runtime_noise: float = 0.0
    emulated: bool = False
    alone_noise: float = 0.0
    alone_signal: float = 0.0
    clipped_noise: float = 0.0
    values: int = 0
    clipped: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    histogram: Histogram = field(default_factory=Histogram)
    channels: NDArray[np.float64] | None = None
    shift: NDArray[np.float64] | None = None

    def see(self, data: str, value: Array, quantized: Array | None) -> None:
        """Add one sample: the values in the float model and, if available, in the quantized one."""
        real = np.asarray(value, np.float64)
        self.histogram.add(real)
        if quantized is not None:
            self.signal += energy(real)
            self.noise += energy(np.asarray(quantized, np.float64).reshape(real.shape) - real)
        # The sum over samples, not the maximum: a single outlier does not characterize its channel.
        channels = self._by_channel(np.abs(real)).max(axis=1)
        self.channels = channels if self.channels is None else self.channels + channels
        grid = self.layer.grid
        if grid is not None:
            beyond = np.maximum(real - grid.high, 0) + np.maximum(grid.low - real, 0)
            self.clipped_noise += energy(beyond)
            self.clipped[data] = self.clipped.get(data, 0) + int((beyond > 1.5 * grid.step).sum())
            self.counted[data] = self.counted.get(data, 0) + real.size

    def add(self, reference: Array, quantized: Array, written: Array | None) -> NDArray[np.float32]:
        """Add the layer's own error on one sample, for exact inputs, and return it."""
        real = np.asarray(reference, np.float64)
        # A half-precision overflow counts as a large, finite error.
        error = np.nan_to_num(np.asarray(quantized, np.float64).reshape(real.shape) - real)
        error = np.clip(error, -LARGEST, LARGEST)
        self.values += real.size
        self.own_signal += energy(real)
        self.own_noise += energy(error)
        self.own_error += float(error.sum())
        shift = self._by_channel(error).sum(axis=1)
        self.shift = shift if self.shift is None else self.shift + shift
        if written is not None:
            as_written = np.asarray(written, np.float64).reshape(real.shape)
            self.emulated = True
            self.written_signal += energy(as_written)
            self.written_noise += energy(as_written - real)
            self.runtime_noise += energy(error + real - as_written)
        return error.astype(np.float32)

    def alone(self, exact: Array, disturbed: Array) -> None:
        """Add the model's output on one sample with the error of this layer only."""
        real = np.asarray(exact, np.float64)
        self.alone_signal += energy(real)
        self.alone_noise += energy(np.asarray(disturbed, np.float64) - real)

    def _by_channel(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values as ``[channels, ...]``, all other axes flattened."""
        axis = values.ndim - 1 if self.layer.channels_last or values.ndim < 3 else 1
        if values.ndim < 2:
            return values.reshape(1, -1)
        return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)

    def statistics(
        self, total: float, largest: dict[str, float], names: Mapping[str, str] = MappingProxyType({})
    ) -> LayerStatistics:
        """The statistics. ``total`` is the sum of the noise of all layers alone, ``names`` those of keys."""
        layer, weights, grid = self.layer, self.layer.weights, self.layer.grid
        per_channel = self.values / len(self.shift) if self.shift is not None else 1.0
        shifted = 0.0 if self.shift is None else float((self.shift**2).sum()) / max(per_channel, 1.0)
        weight_statistics = {
            "weight_type": weights.dtype,
            "weights_per_channel": weights.per_channel,
            "weight_spread": float(weights.largest.max() / weights.largest.min()),
            "weight_spread_median": float(weights.largest.max() / np.median(weights.largest)),
            "weight_spread_quartile": float(weights.largest.max() / np.quantile(weights.largest, 0.25)),
            "weight_input_spread": float(weights.by_input.max() / np.quantile(weights.by_input, 0.25)),
            "weight_levels": weights.levels,
        } if weights is not None else {}  # fmt: skip
        return LayerStatistics(
            name=layer.name,
            operator=layer.operator,
            snr_db=snr_db(self.signal, self.noise),
            own_snr_db=snr_db(self.own_signal, self.own_noise),
            alone_snr_db=snr_db(self.alone_signal, self.alone_noise),
            share=self.alone_noise / total if total > 0 else 0.0,
            mean_error=self.own_error / max(self.values, 1),
            bias=min(1.0, shifted / self.own_noise) if self.own_noise > 0 else 0.0,
            low=None if grid is None else grid.low,
            high=None if grid is None else grid.high,
            minimum=self.histogram.minimum,
            maximum=self.histogram.maximum,
            clipped=sum(self.clipped.values()) / max(sum(self.counted.values()), 1),
            clipped_noise=min(1.0, self.clipped_noise / self.own_noise) if self.own_noise > 0 else 0.0,
            outlier=self._outlier(),
            activation_spread=self._activation_spread(),
            runtime_snr_db=snr_db(self.written_signal, self.runtime_noise) if self.emulated else None,
            runtime_noise=self.runtime_noise / max(self.written_noise, 1e-30) if self.emulated else 0.0,
            inputs=tuple(
                (names.get(source, source), largest[source]) for source in layer.sources if source in largest
            ),
            **weight_statistics,
        )  # fmt: skip

    def _outlier(self) -> float:
        if self.histogram.minimum == self.histogram.maximum:
            return 1.0
        low, high = self.histogram.range("percentile", percentile=99.9)
        return max(1.0, self.extreme / max(abs(low), abs(high), 1e-30))

    def _activation_spread(self) -> float:
        """Largest channel relative to the lower quartile of the channels that are not zero."""
        if self.channels is None or not (alive := self.channels[self.channels > 0]).size:
            return 1.0
        return float(alive.max() / np.quantile(alive, 0.25))

    @property
    def extreme(self) -> float:
        return max(abs(self.histogram.minimum), abs(self.histogram.maximum))


def energy(values: NDArray[np.float64]) -> float:
    """Sum of squares; values that are not finite count as the largest error."""
    finite = np.nan_to_num(values, nan=LARGEST, posinf=LARGEST, neginf=LARGEST)
    return float((finite**2).sum())
