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
from edgeopt.evaluation.layer_statistics import Comparison, LayerSums, energy
from edgeopt.formats.known import format_named
from edgeopt.model import Array, Model
from edgeopt.plugin import Feed
from edgeopt.plugin.layer_pair import INPUT, Pair, Values
from edgeopt.results import snr_db

ALONE_SAMPLES = 16
"""Number of samples for the effect of each layer alone: each sample needs one run per layer."""


class Data(NamedTuple):
    """A named source of samples."""

    name: str
    feed: Feed


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
    signal = noise = written_noise = 0.0
    agreed = count = 0
    classes, emulated = 0, False
    for name, inputs in _samples(reference, data, samples):
        exact = pair.reference(inputs)
        actual = pair.quantized(inputs)
        written = pair.quantized(inputs, written=True)
        assert actual is not None  # only the emulation in float may be unavailable
        output = np.asarray(exact[pair.output], np.float64)
        signal += energy(output)
        noise += _distance(actual[pair.output], output)
        agreed += int(np.asarray(actual[pair.output]).argmax() == output.argmax())
        classes = output.size
        if written is not None:
            emulated = True
            written_noise += _distance(written[pair.output], output)
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
                    sums[key].alone(output, pair.disturbed(inputs, key, error))
                else:
                    sums[key].alone(output, output)
        count += 1
    if not count:
        raise StageError("there are no samples to compare on", fix="add data.calibration to the recipe")
    total = sum(each.alone_noise for each in sums.values())
    largest = {key: each.extreme for key, each in sums.items()}
    return Comparison(
        layers=tuple(each.statistics(total, largest) for each in sums.values()),
        samples=count,
        snr_db=snr_db(signal, noise),
        agreement=agreed / count if classes > 1 else None,
        written_snr_db=snr_db(signal, written_noise) if emulated else None,
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
