"""The contents of a model file: its model, its size breakdown, and its operators."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.model import Model


@dataclass(frozen=True)
class Source:
    """A model as declared by its file. ``layers`` counts the layer classes, if the file names them."""

    model: Model
    framework: Literal["keras", "torch"] | None = None
    """The training framework; None for a converted file."""
    notes: tuple[str, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)
    output_count: int | None = None
    """The number of outputs, if the file declares that alone."""
    needs_code: str = ""
    """What the file needs of the code of its author, as a clause for a message; empty: nothing."""


class Operator(NamedTuple):
    """One operator of a file, as executed by a runtime. Omitted optional tensors are not listed."""

    kind: str
    """Operator type in the format, such as ``CONV_2D``; the name of a custom operator."""
    name: str
    """Name of its output tensor."""
    version: int
    custom: bool
    inputs: tuple[str, ...]
    """NumPy dtype names of its inputs."""
    constant: tuple[bool, ...]
    """For each input, whether it is a constant in the file."""
    outputs: tuple[str, ...]
    """NumPy dtype names of its outputs."""
    working: int
    """Bytes of its input and output tensors at batch 1, without constants."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of its outputs; -1 is a dynamic dimension."""

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}".strip()

    @property
    def activation(self) -> str:
        """Its activation dtype: that of the first input that is not constant, else of its output."""
        variable = [dtype for dtype, fixed in zip(self.inputs, self.constant, strict=True) if not fixed]
        return next(iter([*variable, *self.outputs]), "")

    @property
    def weight(self) -> str:
        """Its weight dtype: that of the second input, if constant."""
        return self.inputs[1] if len(self.inputs) > 1 and self.constant[1] else ""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class LayerSize(_Value):
    """Size and cost of one operator of a file.

    ``macs`` counts the multiply-accumulates of one inference; it is None for dynamic shapes. ``types`` are
    the dtypes of the present inputs and of the output.
    """

    name: str
    kind: str
    types: tuple[str, ...] = ()
    shape: tuple[int | None, ...] = ()
    macs: int | None = 0
    parameters: int = 0
    weight_bytes: int = 0


class SizeBreakdown(_Value):
    """The size of a file by part. The sum of ``parts`` is ``size_bytes``."""

    file: str
    format: str
    size_bytes: int
    parts: dict[str, int]
    layers: tuple[LayerSize, ...] = ()
    parameters: int | None = None
    macs: int | None = None
    sparsity: float | None = Field(
        None,
        description="fraction of weights equal to their tensor's most frequent value: zero after pruning",
    )
    notes: tuple[str, ...] = ()
