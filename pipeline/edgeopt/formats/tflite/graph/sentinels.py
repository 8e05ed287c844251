"""Sentinels in a TFLite graph, and comparisons with them."""

from collections.abc import Container, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from edgeopt.formats.sentinels import are_mixed, reading
from edgeopt.formats.tflite.files.graphs import WEIGHTED, Operation, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile

Ranges: TypeAlias = Mapping[str, Mapping[str, Any]]

JOINING = frozenset("ADD SUB SELECT SELECT_V2".split())
PASSING = JOINING | frozenset(
    "MUL DIV NEG ABS RESHAPE TRANSPOSE BROADCAST_TO EXPAND_DIMS SQUEEZE SLICE STRIDED_SLICE CONCATENATION "
    "TILE GATHER SPLIT".split()
)
"""Operators with a sentinel in their result if they read one."""
COMPARING = frozenset("EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL".split())
PADDING = frozenset("PADV2 MAX_POOL_2D".split())
"""Operators for which infinity is the lowest number of the range: padding before the maximum of a window."""


def with_sentinels(file: TfliteFile, ranges: Ranges, unbounded: Container[str]) -> list[str]:
    """The outputs of the operators of the main graph that join, read or compare sentinels.

    ``unbounded`` are the tensors with infinite values on the calibration data, which are not in ``ranges``.
    """
    operations = [each for each in graphs_of(file)[0].operations if each.outputs]
    producers = {tensor.number: at for at, each in enumerate(operations) for tensor in each.outputs}

    def inputs(at: int) -> Iterator[int]:
        yield from (producers[t.number] for t in operations[at].present if t.number in producers)

    def starts(at: int) -> bool:
        kind, result = operations[at].kind, operations[at].outputs[0]
        if result.name in unbounded:
            return kind not in PADDING
        # A constant may never have been selected.
        largest = max(_extents(operations[at], ranges), default=0.0)
        return kind in JOINING and _mixed(operations[at], ranges) and 2 * _extent(result, ranges) >= largest

    found = reading(
        range(len(operations)),
        inputs,
        starts,
        passes=lambda at: operations[at].kind in PASSING,
        computes=lambda at: operations[at].kind in WEIGHTED,
    )
    # The library would compare with a constant of an infinite scale.
    compared = [at for at, each in enumerate(operations) if each.kind in COMPARING and _mixed(each, ranges)]
    return [operations[at].outputs[0].name for at in sorted({*found, *compared})]


def _mixed(operation: Operation, ranges: Ranges) -> bool:
    return are_mixed(_extents(operation, ranges, constant=False), _extents(operation, ranges, constant=True))


def _extents(operation: Operation, ranges: Ranges, *, constant: bool | None = None) -> list[float]:
    floats = [tensor for tensor in operation.present if tensor.dtype == "float32"]
    return [_extent(tensor, ranges) for tensor in floats if constant in (None, tensor.is_constant)]


def _extent(tensor: Tensor, ranges: Ranges) -> float:
    """The largest magnitude in a tensor on the calibration data."""
    known = ranges.get(tensor.name, {}).values()
    values = [np.frombuffer(tensor.data, np.float32)] if tensor.is_constant else known
    return max((float(np.abs(each).max()) for each in values if np.size(each)), default=0.0)
