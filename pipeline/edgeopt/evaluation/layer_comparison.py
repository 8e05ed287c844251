"""Runs a float and a quantized file side by side on samples and gathers the statistics of their layers.

Samples pass one by one, so memory does not grow with their number.
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
"""Samples on which the effect of each layer alone is seen: each takes one run per layer."""


class Data(NamedTuple):
    """Samples to compare on, and what they are called."""

    name: str
    feed: Feed


def compare(reference: Model, quantized: Model, data: Sequence[Data], samples: int) -> Comparison:
    """Statistics of every layer that both files have.

    Args:
        reference: the float file.
        quantized: the file that was made of it by quantizing, before anything removed its names.
        data: where samples are taken from, in equal parts.
        samples: how many in all.

    Raises:
        StageError: the files cannot be compared, or there are no samples.
    """
    pair = format_named(reference.format).open_layers(reference, quantized)
    sums = {layer.key: LayerSums(layer) for layer in pair.layers}
    signal = noise = written_noise = 0.0
    agreed = count = 0
    classes, told_twice = 0, False
    for name, inputs in _samples(reference, data, samples):
        exact = pair.reference(inputs)
        found = pair.quantized(inputs)
        written = pair.quantized(inputs, written=True)
        assert found is not None  # only the way of computing it in float may be missing
        output = np.asarray(exact[pair.output], np.float64)
        signal += energy(output)
        noise += _distance(found[pair.output], output)
        agreed += int(np.asarray(found[pair.output]).argmax() == output.argmax())
        classes = output.size
        if written is not None:
            told_twice = True
            written_noise += _distance(written[pair.output], output)
        for key, each in sums.items():
            if not np.isfinite(exact[key]).all():
                raise StageError(
                    f"the float model gives NaN or infinity in {each.layer.name} on a sample of {name}",
                    fix="repair the model or its data first: this is no matter of quantization",
                )
            each.see(name, exact[key], found.get(key))
        errors = _own_errors(pair, sums, exact)
        if count < ALONE_SAMPLES:
            for key, error in errors.items():
                if np.any(error):
                    sums[key].alone(output, pair.disturbed(inputs, key, error))
                else:
                    sums[key].alone(output, output)
        count += 1
    if not count:
        raise StageError("there are no samples to compare on", fix="give data.calibration in the recipe")
    total = sum(each.alone_noise for each in sums.values())
    largest = {key: each.extreme for key, each in sums.items()}
    return Comparison(
        layers=tuple(each.statistics(total, largest) for each in sums.values()),
        samples=count,
        snr_db=snr_db(signal, noise),
        agreement=agreed / count if classes > 1 else None,
        written_snr_db=snr_db(signal, written_noise) if told_twice else None,
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
    """Run every layer on what the float model gives, put on the quantized tensors' grids.

    So rounding a tensor counts once, for the layer that gives it, and not again where it is read.
    """
    given = dict(exact)
    for layer in pair.layers:
        if layer.grid is not None:
            given[layer.key] = layer.grid.snap(exact[layer.key])
    each = pair.each(given)
    errors = {}
    for layer in pair.layers:
        if layer.key in each.quantized and layer.operator != INPUT:
            written = each.written[layer.key] if each.written is not None else None
            reference, quantized = each.reference[layer.key], each.quantized[layer.key]
        else:
            # An input has no layer before it: all it adds is its own rounding.
            reference, quantized, written = exact[layer.key], given[layer.key], None
        errors[layer.key] = sums[layer.key].add(reference, quantized, written)
    return errors


def _samples(reference: Model, data: Sequence[Data], samples: int) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """In turns, so that the first few stand for all data."""
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
