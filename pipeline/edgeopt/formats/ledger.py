"""What a model file is made of: where its bytes go, and what its layers do."""

from collections.abc import Iterable
from math import prod

from pydantic import BaseModel, ConfigDict


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
    notes: tuple[str, ...] = ()


def total_macs(layers: Iterable[Layer]) -> int | None:
    """The sum, if it is known of every layer."""
    found = [layer.macs for layer in layers]
    return None if None in found or not found else sum(number for number in found if number is not None)


def product(shape: Iterable[int | None]) -> int | None:
    """The number of elements, if every dimension is known."""
    sizes = tuple(shape)
    known = [size for size in sizes if size is not None and size >= 0]
    return prod(known) if len(known) == len(sizes) else None
