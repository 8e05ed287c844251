"""What reading a model file finds out about it, the same for every format."""

from dataclasses import dataclass, field
from typing import Literal

from edgeopt.model import Layout, Model, TensorSpec

UNTOLD = "the file does not tell what goes in: give model.inputs in the recipe"


@dataclass(frozen=True)
class Source:
    """A model as it was found. ``layers`` counts the layer classes where the file tells them."""

    model: Model
    framework: Literal["keras", "torch"] | None = None
    notes: tuple[str, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)


def tensor(name: str, shape: tuple[int | None, ...], dtype: str, layout: Layout | None) -> TensorSpec:
    """An input or output; only one of rank 4 has a layout."""
    return TensorSpec(name=name, shape=shape, dtype=dtype, layout=layout if len(shape) == 4 else None)
