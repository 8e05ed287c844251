"""Layers before a logarithm, which enlarges what 8 bits lose of small values."""

from collections.abc import Collection, Sequence
from itertools import takewhile

import numpy as np

from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile
from edgeopt.formats.tflite.graph.layers import WeightedLayer
from edgeopt.formats.tflite.quantize.quantizer import Ranges

LEVELS = 255


def before_logarithms(
    file: TfliteFile, ranges: Ranges, layers: Sequence[WeightedLayer]
) -> list[WeightedLayer]:
    """The layers whose results reach a logarithm of values that are below one of the ``LEVELS`` steps.

    An example is the spectrum in a network of sounds: a pitch detector has 10 dB with them in int8, and
    29 dB with them in float.
    """
    operations = graphs_of(file)[0].operations
    producers = {tensor.number: at for at, each in enumerate(operations) for tensor in each.outputs}
    waiting = [at for at, each in enumerate(operations) if each.kind == "LOG" and _is_wide(each.name, ranges)]
    found: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting += [producers[t.number] for t in operations[at].present if t.number in producers]
    names = {operations[at].name for at in found}
    return [layer for layer in layers if layer.tensor in names]


def _is_wide(logarithm: str, ranges: Ranges) -> bool:
    """Whether the values before a logarithm differ by more than ``LEVELS``."""
    if logarithm not in ranges:
        return False
    low, high = (float(np.ravel(ranges[logarithm][end])[0]) for end in ("min", "max"))
    return high - low > float(np.log(LEVELS))


def note(found: Sequence[WeightedLayer], others: Collection[str]) -> str:
    """A note on layers before a logarithm; ``others`` are the names of all other layers."""
    names = [layer.name for layer in found]
    columns = zip(*names, strict=False) if len(names) > 1 else ()
    prefix = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    is_pattern = bool(prefix) and not any(name.startswith(prefix) for name in others)
    chosen = [f"{prefix}*"] if is_pattern else names
    size = sum(3 * layer.elements for layer in found)
    return (
        "a logarithm enlarges what 8 bits lose of small values in the layers before it; keep them in float "
        f"for up to {size:,} B: layers: {{{', '.join(f'{name!r}: float32' for name in chosen)}}}"
    )
