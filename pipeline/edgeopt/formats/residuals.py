"""Residual streams of transformers: the sums that every block adds to, and the normalizations that read them.

The stream collects the outputs of all blocks, so that its range is much larger than what one block adds: in 8
bits, each sum rounds away part of it, and the normalization enlarges the error of tokens of small variance.
Sums and normalizations have no weights: in float, they cost no bytes.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

NOTE = "residual sums and the normalizations that read them stay in float, which adds no bytes of weights"

N = TypeVar("N", bound=Hashable)


def streams(
    normalizations: Iterable[N], inputs: Callable[[N], Sequence[N]], is_sum: Callable[[N], bool]
) -> list[N]:
    """The operators of residual streams, from the first values to the normalizations that read them.

    Args:
        normalizations: the normalizations of tokens, as of layers, in a graph.
        inputs: the operators whose results an operator reads, where values keep their meaning, as in a sum or
            a reshape; none for others, such as a matrix product.
        is_sum: whether an operator adds two computed values.
    """
    behind: dict[N, bool] = {}

    def holds(node: N) -> bool:
        """Whether the node is a sum, or reads one."""
        waiting = [node]
        while waiting:
            at = waiting[-1]
            unknown = [source for source in inputs(at) if source not in behind]
            if at not in behind and unknown:
                waiting.extend(unknown)
                continue
            behind[waiting.pop()] = is_sum(at) or any(behind[source] for source in inputs(at))
        return behind[node]

    found = [start for start in normalizations if holds(start)]
    kept: dict[N, None] = {}
    # What a sum reads belongs to the stream as well: the first values, such as tokens and their positions.
    while found:
        node = found.pop()
        if node not in kept:
            kept[node] = None
            found.extend(inputs(node))
    return list(kept)
