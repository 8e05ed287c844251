"""What a model is between two stages: files, a format tag, and what goes in and comes out.

No live framework object is ever part of it, so a model can be cached, moved to another process
or host, and picked up again after an interruption.
"""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Layout: TypeAlias = Literal["NHWC", "NCHW"]
Array: TypeAlias = NDArray[np.generic]


def _number(value: object) -> object:
    """Accept ``1/255`` where a number is expected: exact and readable."""
    if isinstance(value, str) and "/" in value:
        return float(Fraction(value))
    return value


Number: TypeAlias = Annotated[float, BeforeValidator(_number)]


class TensorSpec(BaseModel):
    """Name, shape and dtype of one input or output.

    ``shape`` includes the batch axis; ``None`` is a free dimension. ``layout`` is set for
    image-like tensors of rank 4 only. ``scale`` and ``zero_point`` are set for integer tensors
    that stand for real numbers: ``real = (stored - zero_point) * scale``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="how the model calls it")
    shape: tuple[int | None, ...] = Field(description="with the batch axis; null is a free dimension")
    dtype: str = Field("float32", description="numpy's name of the type")
    layout: Layout | None = Field(None, description="for images: where the channels are")
    scale: float | None = Field(None, description="of quantized values: real = (stored - zero_point) * scale")
    zero_point: int | None = Field(None, description="of quantized values")


class Preprocessing(BaseModel):
    """How a raw sample becomes model input: ``(x * scale - mean) / std``, per channel.

    ``layout`` is the layout of the raw data; samples are transposed to the layout of the input
    they are fed to. ``mean`` and ``std`` are given after scaling, one number or one per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Number = Field(1.0, description="factor applied first; '1/255' is understood")
    mean: tuple[Number, ...] = Field((), description="subtracted after scaling, per channel")
    std: tuple[Number, ...] = Field((), description="divided by, per channel")
    layout: Layout | None = Field(None, description="layout of the raw data; default: as the model's input")

    def apply(self, sample: Array, spec: TensorSpec) -> Array:
        """Turn one raw sample (no batch axis) into one input of batch 1 for ``spec``."""
        source = self.layout or spec.layout
        if not np.issubdtype(np.dtype(spec.dtype), np.floating) and not self.changes_values:
            values: Array = sample.astype(spec.dtype)
        else:
            real = sample.astype(np.float32)
            if self.scale != 1.0:
                real *= np.float32(self.scale)
            if self.mean:
                real = real - self._per_channel(self.mean, real.ndim, source)
            if self.std:
                real = real / self._per_channel(self.std, real.ndim, source)
            values = real
        return arrange(values[np.newaxis], source, spec.layout)

    @property
    def changes_values(self) -> bool:
        return self.scale != 1.0 or bool(self.mean) or bool(self.std)

    @staticmethod
    def _per_channel(values: tuple[float, ...], rank: int, layout: Layout | None) -> NDArray[np.float32]:
        array = np.asarray(values, np.float32)
        if array.size == 1 or layout != "NCHW":
            return array
        return array.reshape(-1, *[1] * (rank - 1))


def arrange(batch: Array, source: Layout | None, target: Layout | None) -> Array:
    """Transpose a batch of rank 4 from one layout to the other; anything else stays as it is."""
    if source is None or target is None or source == target or batch.ndim != 4:
        return batch
    axes = (0, 3, 1, 2) if target == "NCHW" else (0, 2, 3, 1)
    return np.ascontiguousarray(batch.transpose(axes))


class Model(BaseModel):
    """Files plus a format tag. ``path`` is one file, or a folder that belongs to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    path: Path
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    code: Path | None = Field(
        None, description="where the Python code lies that builds a PyTorch module; not part of what it is"
    )
    transposes: int | None = Field(None, description="TRANSPOSE operators in the graph, where it was counted")
