"""What a model file is made of: where its bytes go, and what its layers do."""

from collections.abc import Iterable
from math import prod

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

SMALL = 64
"""Tensors of fewer values say nothing about sparsity."""


class Layer(BaseModel):
    """One operator. ``macs`` counts multiply-accumulates of one inference, ``None`` where a shape is free.

    ``types`` are the dtypes of the inputs that are there, and of the output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    types: tuple[str, ...] = ()
    shape: tuple[int | None, ...] = ()
    macs: int | None = 0
    parameters: int = 0
    weight_bytes: int = 0


class Ledger(BaseModel):
    """Where the bytes of a file go. The sum of ``parts`` is ``size_bytes``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    format: str
    size_bytes: int
    parts: dict[str, int]
    layers: tuple[Layer, ...] = ()
    parameters: int | None = None
    macs: int | None = None
    sparsity: float | None = Field(
        None, description="share of weights with their tensor's most frequent value: zero, in a pruned one"
    )
    notes: tuple[str, ...] = ()


def total_macs(layers: Iterable[Layer]) -> int | None:
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
