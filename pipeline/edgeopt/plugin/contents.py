"""What a model file is found to hold: its model, its bytes, and its operators as a runtime meets them."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.model import Model


@dataclass(frozen=True)
class Source:
    """A model as its file describes it. ``layers`` counts the layer classes where the file names them."""

    model: Model
    framework: Literal["keras", "torch"] | None = None
    """Where it was trained; None for a file that is converted already."""
    notes: tuple[str, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)


class Operator(NamedTuple):
    """One operator of a file, as its runtime meets it. Tensors that are left out are not counted."""

    kind: str
    """As the format calls it, such as ``CONV_2D``; a custom operator has its own name."""
    name: str
    """Of the tensor that it gives."""
    version: int
    custom: bool
    inputs: tuple[str, ...]
    """Types of its inputs, as numpy calls them."""
    constant: tuple[bool, ...]
    """Which of the inputs are stored in the file."""
    outputs: tuple[str, ...]
    """Types of its outputs."""
    working: int
    """Bytes of its inputs and outputs that lie in memory at once, at batch 1; without constants."""
    shapes: tuple[tuple[int, ...], ...]
    """Of its outputs; -1 is a free dimension."""

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}".strip()

    @property
    def activation(self) -> str:
        """The type in which it computes: that of its first input that is not stored, else of its output."""
        moving = [kind for kind, fixed in zip(self.inputs, self.constant, strict=True) if not fixed]
        return next(iter([*moving, *self.outputs]), "")

    @property
    def weight(self) -> str:
        """The type of its second input, where that is stored."""
        return self.inputs[1] if len(self.inputs) > 1 and self.constant[1] else ""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerSize(_Value):
    """What one operator adds to a file. ``macs`` counts multiply-accumulates of one inference, ``None`` where
    a shape is free.

    ``types`` are the dtypes of the inputs that are there, and of the output.
    """

    name: str
    kind: str
    types: tuple[str, ...] = ()
    shape: tuple[int | None, ...] = ()
    macs: int | None = 0
    parameters: int = 0
    weight_bytes: int = 0


class SizeBreakdown(_Value):
    """Where the bytes of a file go. The sum of ``parts`` is ``size_bytes``."""

    file: str
    format: str
    size_bytes: int
    parts: dict[str, int]
    layers: tuple[LayerSize, ...] = ()
    parameters: int | None = None
    macs: int | None = None
    sparsity: float | None = Field(
        None, description="share of weights with their tensor's most frequent value: zero, in a pruned one"
    )
    notes: tuple[str, ...] = ()
