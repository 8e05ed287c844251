"""Sentinels: numbers far larger than the others of a tensor, which mean that a value is absent.

Examples are ``x.masked_fill(mask, -1e9).amax(1)`` and ``(x + mask * -1e9).amax(1)``. In 8 bits, the sentinel
takes nearly all of the range, and leaves no step for the values. The operators from the one that joins both
to the one that drops the sentinel again stay in float, which costs no bytes, as they have no weights. Masks
before a softmax are a case of their own (`formats.masks`): -50 is enough there.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from edgeopt.formats.calibration import MIXED

HUGE = 1e4
"""Constants from here on are sentinels if all values beside them are zero or constant."""
NOTE = (
    "operators that join or read numbers of very different sizes, such as -1e9 for absent values, "
    "stay in float, which adds no bytes"
)

N = TypeVar("N", bound=Hashable)


def are_mixed(computed: Sequence[float], constants: Sequence[float]) -> bool:
    """Whether 8 bits cannot serve both of the operands of an operator, of these largest magnitudes.

    A small constant, such as one that keeps a divisor from zero, needs no step of its own.
    """
    large = max(computed, default=0.0)
    extents = [
        extent for extent in (*computed, *constants) if extent > 0 and (extent >= large or extent in computed)
    ]
    if len(extents) > 1:
        return max(extents) >= MIXED * min(extents)
    return max(constants, default=0.0) >= HUGE


def reading(
    operators: Iterable[N],
    inputs: Callable[[N], Iterable[N]],
    starts: Callable[[N], bool],
    passes: Callable[[N], bool],
    computes: Callable[[N], bool],
) -> list[N]:
    """The operators that join sentinels with other values, pass both on, or drop them, in order of execution.

    Args:
        operators: all operators of a graph, in order of execution.
        inputs: the operators whose results an operator reads.
        starts: whether an operator puts a sentinel beside other values.
        passes: whether a sentinel that an operator reads is in its result, as in a sum or a reshape.
        computes: whether an operator has weights: its precision is that of its layer.
    """
    holding: dict[N, bool] = {}
    for operator in operators:
        if starts(operator):
            holding[operator] = True
        elif not computes(operator) and any(holding.get(source) for source in inputs(operator)):
            holding[operator] = passes(operator)
    return list(holding)
