"""Element, multiply-accumulate and sparsity counts for the size breakdowns of all formats."""

from collections.abc import Iterable
from math import prod

import numpy as np
from numpy.typing import NDArray

from edgeopt.plugin.contents import LayerSize

SMALL = 64
"""Smaller tensors are ignored: their sparsity is not meaningful."""


def total_macs(layers: Iterable[LayerSize]) -> int | None:
    """Sum of the MACs; None if those of a layer are unknown, or if there are no layers."""
    macs = [layer.macs for layer in layers]
    return None if None in macs or not macs else sum(number for number in macs if number is not None)


def sparsity(weights: Iterable[NDArray[np.generic]]) -> float | None:
    """Fraction of the values that equal the most frequent value of their tensor; None without data.

    In a pruned tensor that value is zero, however zero is encoded; in a dense one it makes up a few percent.
    """
    frequent = total = 0
    for values in weights:
        if values.size >= SMALL:
            frequent += int(np.unique(values, return_counts=True)[1].max())
            total += values.size
    return frequent / total if total else None


def product(shape: Iterable[int | None]) -> int | None:
    """Number of elements; None if a dimension is unknown."""
    sizes = tuple(shape)
    known = [size for size in sizes if size is not None and size >= 0]
    return prod(known) if len(known) == len(sizes) else None
