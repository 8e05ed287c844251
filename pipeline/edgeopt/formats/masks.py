"""Masks of attention: very low numbers that are added to scores, or replace them, before a softmax.

In 8 bits they would take nearly all of the range, and leave no step for the scores. What lies between a mask
and its softmax stays in float, which costs no bytes, as it has no weights.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

LOWEST = -50.0
"""Constants from here down mask: exp(-50) is 2e-22, and the smallest float32 step at 1 is 6e-8."""
ATTENTION = (
    "networks with attention lose more by 8-bit activations than others: dynamic_int8 has files of the same "
    "size, and keeps activations in float"
)
NOTE = "attention masks, and the softmax after each, stay in float, which adds no bytes"

N = TypeVar("N", bound=Hashable)


def masking(
    softmaxes: Iterable[N], inputs: Callable[[N], Iterable[N]], masks: Callable[[N], bool]
) -> list[N]:
    """The operators from a mask to its softmax, both included, in order of execution.

    Args:
        softmaxes: the softmax operators of a graph.
        inputs: the operators whose results an operator reads, where values keep their meaning, as in a sum, a
            selection or a reshape; none for others, such as a matrix product.
        masks: whether an operator reads a constant of ``LOWEST`` or less.
    """
    found: dict[N, bool] = {}

    def holds(node: N) -> bool:
        if node not in found:
            found[node] = False  # ends a loop
            below = [holds(source) for source in inputs(node)]
            # Added again, so that what it reads comes first.
            del found[node]
            found[node] = any(below) or masks(node)
        return found[node]

    for softmax in softmaxes:
        holds(softmax)
    return [node for node, holding in found.items() if holding]
