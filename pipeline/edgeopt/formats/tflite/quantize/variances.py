"""Variances, and other sums of squares whose root is taken, as in the normalization of layers."""

from edgeopt.formats.tflite.files.graphs import Operation, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile

NOTE = "variances of normalizations stay in float, which adds no bytes"
ROOTS = frozenset({"RSQRT", "SQRT"})
WITHIN = frozenset({"ADD", "MUL", "MEAN", "SUM", "RESHAPE"})
"""Operators of one computed operand between a square and its root."""
SQUARES = frozenset({"SQUARED_DIFFERENCE", "SQUARE"})


def variances(file: TfliteFile) -> list[str]:
    """The outputs of the operators from squares to their roots in the main graph, both included.

    A square has twice as many digits as its operand: tokens or channels of small variance have few steps of
    the common scale, and the reciprocal enlarges their errors. A vision transformer has 22 dB in int8x16 and
    8.7 dB in int8 with variances in integers, 33 and 10.7 dB with them in float.
    """
    operations = graphs_of(file)[0].operations
    producers = {tensor.number: at for at, each in enumerate(operations) for tensor in each.outputs}
    found: set[int] = set()
    waiting = [at for at, each in enumerate(operations) if each.kind in ROOTS]
    while waiting:
        at = waiting.pop()
        found.add(at)
        if operations[at].kind in SQUARES:
            continue
        for tensor in operations[at].present:
            source = producers.get(tensor.number)
            if source is not None and source not in found and _is_within(operations[source]):
                waiting.append(source)
    return [operations[at].outputs[0].name for at in sorted(found)]


def _is_within(operation: Operation) -> bool:
    computed = {tensor.number for tensor in operation.present if not tensor.is_constant}
    return operation.kind in SQUARES or (operation.kind in WITHIN and len(computed) == 1)
