"""What the breakdowns of all formats count: elements, multiply-accumulates, zeros."""

from collections.abc import Iterable
from math import prod

import numpy as np
from numpy.typing import NDArray

from edgeopt.plugin.contents import LayerSize

SMALL = 64
"""Tensors of fewer values say nothing about sparsity."""


def total_macs(layers: Iterable[LayerSize]) -> int | None:
    """The sum, if it is known of every layer."""
    found = [layer.macs for layer in layers]
    return None if None in found or not found else sum(number for number in found if number is not None)


def sparsity(weights: Iterable[NDArray[np.generic]]) -> float | None:
    """Share of values that are the most frequent one of their tensor.

    That is zero in a tensor that was made sparse, however zero is stored; elsewhere it is a few percent.
    """
    frequent = total = 0
    for values in weights:
        if values.size >= SMALL:
            frequent += int(np.unique(values, return_counts=True)[1].max())
            total += values.size
    return frequent / total if total else None


def product(shape: Iterable[int | None]) -> int | None:
    """The number of elements, if every dimension is known."""
    sizes = tuple(shape)
    known = [size for size in sizes if size is not None and size >= 0]
    return prod(known) if len(known) == len(sizes) else None
