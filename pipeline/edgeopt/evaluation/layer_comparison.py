"""Layer-by-layer comparison of a float and a quantized file on samples.

Samples are streamed, so memory does not grow with their number.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.evaluation.interpreter import single
from edgeopt.evaluation.layer_statistics import Comparison, LayerSums, energy
from edgeopt.formats.known import format_named
from edgeopt.model import Array, Model, Outputs
from edgeopt.plugin import Feed
from edgeopt.plugin.layer_pair import INPUT, Pair, Values
from edgeopt.results import snr_db

ALONE_SAMPLES = 16
"""Number of samples for the effect of each layer alone: each sample needs one run per layer."""


class Data(NamedTuple):
    """A named source of samples."""

    name: str
    feed: Feed


class _OutputSums:
    """Sums over samples of the model's outputs."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.signal, self.noise, self.written_noise = (dict.fromkeys(names, 0.0) for _ in range(3))
        self.emulated = False
        self.pairs: list[tuple[Array, Array]] = []
        """The only output of both files by sample, if it is a vector."""
        self.sizes: list[float] = []

    def see(self, exact: Values, actual: Values, written: Values | None) -> None:
        """Add one sample."""
        for name in self.names:
            output = np.asarray(exact[name], np.float64)
            self.signal[name] += energy(output)
            self.noise[name] += _distance(actual[name], output)
            if written is not None:
                self.emulated = True
                self.written_noise[name] += _distance(written[name], output)
        if len(self.names) == 1 and sum(size > 1 for size in exact[self.names[0]].shape) == 1:
            self.pairs.append((exact[self.names[0]], np.asarray(actual[self.names[0]])))

    def together(self, values: Values) -> NDArray[np.float64]:
        """All outputs of one sample; several are flattened and divided by their size on the first sample."""
        outputs = [np.asarray(values[name], np.float64) for name in self.names]
        if len(outputs) == 1:
            return outputs[0]
        self.sizes = self.sizes or [max(float(np.sqrt(np.mean(v**2))), 1e-30) for v in outputs]
        return np.concatenate([v.reshape(-1) / size for v, size in zip(outputs, self.sizes, strict=True)])

    def snr_db(self) -> float:
        """Of the worst output."""
        return min(snr_db(self.signal[name], self.noise[name]) for name in self.names)

    def written_snr_db(self) -> float | None:
        """Of the worst output, as written in the file; None without an emulation."""
        if not self.emulated:
            return None
        return min(snr_db(self.signal[name], self.written_noise[name]) for name in self.names)

    def agreement(self) -> float | None:
        """Of the decisions, if the only output shows by itself what it decides."""
        if not self.pairs:
            return None
        exact, actual = (Outputs([np.concatenate(side)]) for side in zip(*self.pairs, strict=True))
        agreement = single(exact).agreement(actual, exact)
        return None if agreement is None else float(agreement.mean())


def compare(reference: Model, quantized: Model, data: Sequence[Data], samples: int) -> Comparison:
    """Statistics of every layer that both files contain.

    Args:
        reference: the float file.
        quantized: the file quantized from it, with its layer names still in place.
        data: sources of the samples, used in equal parts.
        samples: total number of samples.

    Raises:
        StageError: the files cannot be compared, there are no samples, or the float model's values are not
            finite.
    """
    pair = format_named(reference.format).open_layers(reference, quantized)
    sums = {layer.key: LayerSums(layer) for layer in pair.layers}
    outputs = _OutputSums(pair.outputs)
    count = 0
    for name, inputs in _samples(reference, data, samples):
        exact = pair.reference(inputs)
        actual = pair.quantized(inputs)
        written = pair.quantized(inputs, written=True)
        assert actual is not None  # only the emulation in float may be unavailable
        outputs.see(exact, actual, written)
        output = outputs.together(exact)
        for key, each in sums.items():
            if not np.isfinite(exact[key]).all():
                raise StageError(
                    f"the float model computes NaN or infinity in {each.layer.name} on a sample of {name}",
                    fix="fix the model or its data first: quantization is not the cause",
                )
            each.see(name, exact[key], actual.get(key))
        errors = _own_errors(pair, sums, exact)
        if count < ALONE_SAMPLES:
            for key, error in errors.items():
                if np.any(error):
                    sums[key].alone(output, outputs.together(pair.disturbed(inputs, key, error)))
                else:
                    sums[key].alone(output, output)
        count += 1
    if not count:
        raise StageError("there are no samples to compare on", fix="add data.calibration to the recipe")
    total = sum(each.alone_noise for each in sums.values())
    largest = {key: each.extreme for key, each in sums.items()}
    names = {layer.key: layer.name for layer in pair.layers}
    return Comparison(
        layers=tuple(each.statistics(total, largest, names) for each in sums.values()),
        samples=count,
        snr_db=outputs.snr_db(),
        agreement=outputs.agreement(),
        written_snr_db=outputs.written_snr_db(),
        clipped_by_data={
            part.name: max(
                (s.clipped.get(part.name, 0) / max(s.counted.get(part.name, 0), 1) for s in sums.values()),
                default=0.0,
            )
            for part in data
        },
        unmatched=tuple(pair.unmatched),
    )


def _own_errors(pair: Pair, sums: dict[str, LayerSums], exact: Values) -> dict[str, NDArray[np.float32]]:
    """Run every layer on the float model's values, rounded to the grids of the quantized tensors.

    Rounding a tensor thus counts once, for the layer that produces it, and not again for its consumers.
    """
    rounded = dict(exact)
    for layer in pair.layers:
        if layer.grid is not None:
            rounded[layer.key] = layer.grid.snap(exact[layer.key])
    each = pair.each(rounded)
    errors = {}
    for layer in pair.layers:
        if layer.key in each.quantized and layer.operator != INPUT:
            written = each.written[layer.key] if each.written is not None else None
            reference, quantized = each.reference[layer.key], each.quantized[layer.key]
        else:
            # An input has no preceding layer: its only error is its own rounding.
            reference, quantized, written = exact[layer.key], rounded[layer.key], None
        errors[layer.key] = sums[layer.key].add(reference, quantized, written)
    return errors


def _samples(reference: Model, data: Sequence[Data], samples: int) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """Samples of all sources in turn, so that the first few represent all data."""
    share = math.ceil(samples / max(len(data), 1))
    parts = [(part.name, islice(part.feed.inputs(reference), share)) for part in data]
    while parts:
        left = []
        for name, stream in parts:
            for inputs in islice(stream, 1):
                yield name, inputs
                left.append((name, stream))
        parts = left


def _distance(value: Array, other: NDArray[np.float64]) -> float:
    return energy(np.asarray(value, np.float64).reshape(other.shape) - other)
