"""Models as stages exchange them: files, a format tag, and the specs of inputs and outputs.

A model never holds a live framework object, so it can be cached, sent to another process or host, and reused
after an interruption.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    WrapValidator,
    field_validator,
    model_serializer,
)

from edgeopt.config.settings import Settings
from edgeopt.config.units import check_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]
else:
    Array = Any  # without NumPy, models can still be fetched, listed and planned

Layout: TypeAlias = Literal["NHWC", "NCHW"]

_NUMERIC = re.compile(r"bool|u?int(?P<bits>8|16|32|64)|float(16|32|64)")
"""Names of the numeric types of NumPy."""


class Outputs(NamedTuple):
    """The outputs of a model, each ``[n, ...]``, and their names as far as its runtime reports them."""

    arrays: Sequence[Array]
    names: Sequence[str] = ()

    def name(self, index: int) -> str:
        """The name of an output, or its position."""
        return self.names[index] if len(self.names) == len(self.arrays) else str(index)

    def all_names(self) -> tuple[str, ...]:
        """The names or positions of all outputs."""
        return tuple(self.name(index) for index in range(len(self.arrays)))

    @classmethod
    def joined(cls, rows: Sequence[Sequence[Array]], names: Sequence[str] = ()) -> "Outputs":
        """The outputs of several runs of one sample each, as float32 ``[n, ...]``."""
        import numpy as np

        columns = [[np.asarray(value, np.float32) for value in column] for column in zip(*rows, strict=True)]
        return cls(
            [np.concatenate([v if v.shape[:1] == (1,) else v[None] for v in c]) for c in columns], names
        )

    def only(self, positions: Sequence[int]) -> "Outputs":
        """Some of the outputs."""
        return Outputs([self.arrays[at] for at in positions], [self.name(at) for at in positions])


def _number(value: object) -> object:
    """Parse a fraction such as ``1/255``; other values pass through."""
    if isinstance(value, str) and "/" in value:
        try:
            return check_number(float(Fraction(value)))
        except ArithmeticError as error:
            raise ValueError(f"{value} is not a finite number") from error
    return value


Number: TypeAlias = Annotated[float, BeforeValidator(_number)]


def _value_is_optional(schema: dict[str, Any]) -> None:
    if "value" in schema.get("required", ()):
        schema["required"].remove("value")


class TensorSpec(Settings):
    """Name, shape and dtype of one input or output.

    ``shape`` includes the batch axis; ``None`` is a dynamic dimension. ``layout`` is set for image-like
    tensors of rank 4 only. ``scale`` and ``zero_point`` are set for quantized tensors:
    ``real = (stored - zero_point) * scale``.
    """

    model_config = ConfigDict(json_schema_extra=_value_is_optional)

    name: str = Field(description="name of the tensor in the model")
    shape: tuple[int | None, ...] = Field(description="including the batch axis; null is a dynamic dimension")
    dtype: str = Field("float32", description="NumPy dtype name")
    layout: Layout | None = Field(None, description="position of the channel axis, for images")
    scale: float | None = Field(None, description="quantization scale: real = (stored - zero_point) * scale")
    zero_point: int | None = Field(None, description="quantization zero point")
    value: Number | None = Field(
        None,
        description="the only value of an input, such as a sampling rate that selects a branch: what is "
        "converted through PyTorch contains it, and ignores what it is given",
    )

    # Without the type of its result, which pydantic would take for the schema of a spec.
    @model_serializer(mode="wrap")
    def _without_value(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Leave an absent value out: it is rare, and would be part of every key in stores."""
        content = handler(self)
        if self.value is None:
            content.pop("value", None)
        return content

    @property
    def takes_integers(self) -> bool:
        """Whether it holds integers as such, like tokens or masks, rather than quantized real numbers."""
        return self.dtype.startswith(("bool", "int", "uint")) and self.scale is None

    @property
    def problem(self) -> str:
        """Why samples cannot be fed to it; empty if they can."""
        numeric = _NUMERIC.fullmatch(self.dtype)
        if not numeric:
            return f"dtype {self.dtype!r} is not a numeric type of NumPy, such as float32, uint8 or int64"
        if any(size is not None and size < 1 for size in self.shape):
            return f"shape {list(self.shape)} needs a batch axis, and sizes of at least 1 or null"
        if self.layout is not None and len(self.shape) != 4:
            return f"layout {self.layout} needs a shape of 4 axes, not {list(self.shape)}"
        if self.scale is not None and self.scale <= 0:
            return f"the quantization scale {self.scale:g} is not positive"
        if self.zero_point is not None and numeric["bits"]:
            steps = 1 << int(numeric["bits"])
            lowest = 0 if self.dtype.startswith("u") else -steps // 2
            if not lowest <= self.zero_point < lowest + steps:
                return f"the zero point {self.zero_point} is outside {self.dtype}"
        if self.value is not None and self.takes_integers and self.value != int(self.value):
            return f"the value {self.value:g} is no integer, and the input is of type {self.dtype}"
        return ""


class Preprocessing(Settings):
    """Conversion of a raw sample to model input: ``(x * scale - mean) / std``, per channel.

    ``layout`` is the layout of the raw data; samples are transposed to the layout of the input. ``mean`` and
    ``std`` apply after scaling: one number, or one per channel.

    The settings apply to every input of real numbers; integers, such as tokens and masks, stay as they are.
    A model with several inputs may have settings for each, by name: ``{image: {scale: 1/255}, ids: {}}``;
    then inputs that are not listed stay as they are.
    """

    scale: Number = Field(1.0, description="factor applied first; accepts fractions such as '1/255'")
    mean: tuple[Number, ...] = Field((), description="subtracted after scaling, per channel")
    std: tuple[Number, ...] = Field((), description="divisor applied last, per channel")
    layout: Layout | None = Field(
        None, description="layout of the raw data; default: that of the source model's input"
    )

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("a scale of 0 makes all samples equal")
        return scale

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if any(each <= 0 for each in std):
            raise ValueError("a standard deviation is positive")
        return std

    def apply(self, sample: Array, spec: TensorSpec) -> Array:
        """Convert a raw sample (no batch axis) to an input of batch 1, dtype and layout as in ``spec``.

        Values of a quantized input are still real numbers if they change.
        """
        import numpy as np

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
            values = real.astype(spec.dtype) if spec.takes_integers else real
        return arrange(values[np.newaxis], source, spec.layout)

    def undo(self, batch: Array, spec: TensorSpec) -> Array:
        """Raw samples ``[n, ...]`` of float32 that become these inputs, which ``spec`` describes."""
        import numpy as np

        source = self.layout or spec.layout
        real = arrange(batch, spec.layout, source)
        if not self.changes_values:
            return real
        values = real.astype(np.float32)
        if self.std:
            values = values * self._per_channel(self.std, values.ndim - 1, source)
        if self.mean:
            values = values + self._per_channel(self.mean, values.ndim - 1, source)
        return values / np.float32(self.scale)

    @property
    def changes_values(self) -> bool:
        return self.scale != 1.0 or bool(self.mean) or bool(self.std)

    def of(self, index: int, spec: TensorSpec) -> "Preprocessing":
        """The preprocessing of input ``index``: this one, which leaves integers as they are."""
        return Preprocessing(layout=self.layout) if spec.takes_integers else self

    def names(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """The names by which samples give the inputs that ``specs`` describe."""
        return tuple(spec.name for spec in specs)

    def key(self, specs: Sequence[TensorSpec]) -> Any:
        """What identifies the preprocessing of the inputs that ``specs`` describe, for cache keys."""
        return self.model_dump(mode="json")

    @staticmethod
    def _per_channel(values: tuple[float, ...], rank: int, layout: Layout | None) -> "NDArray[np.float32]":
        import numpy as np

        array = np.asarray(values, np.float32)
        if array.size == 1 or layout != "NCHW":
            return array
        return array.reshape(-1, *[1] * (rank - 1))


def _by_shape(value: object, handler: object) -> "Preprocessing | dict[str, Preprocessing]":
    """Validate as the form that the value has: a mapping of mappings is by input name."""
    if not isinstance(value, Mapping):
        return Preprocessing.model_validate(value)
    inner = [key for key, settings in value.items() if isinstance(settings, Mapping | Preprocessing)]
    others = [key for key in value if key not in inner]
    if inner and others:
        raise ValueError(
            f"{inner[0]!r} has a mapping, as for an input, and {others[0]!r} has none: give settings for all "
            "inputs, or a mapping for each input"
        )
    return _by_input().validate_python(value) if inner else Preprocessing.model_validate(value)


@cache
def _by_input() -> "TypeAdapter[dict[str, Preprocessing]]":
    return TypeAdapter(dict[str, Preprocessing])


Preprocess: TypeAlias = Annotated[Preprocessing | dict[str, Preprocessing], WrapValidator(_by_shape)]
"""One preprocessing for every input of real numbers, or one per input, by name; others stay as they are.

A mapping whose values are mappings is by name, so that an input may have the name of a setting.
"""


class InputPreprocessing(NamedTuple):
    """The preprocessing of every input of a model, and of the models converted from it.

    A conversion may rename inputs, change their layout and quantize them, but keeps their order. Names, and
    the layout of raw data where none is given, are those of the source model; all else is by position.
    """

    given: Preprocessing | Mapping[str, Preprocessing]
    source: tuple[TensorSpec, ...]
    """The inputs of the source model."""

    def of(self, index: int, spec: TensorSpec) -> Preprocessing:
        """The preprocessing of input ``index``, in the source model and in all others."""
        origin = self.source[index]
        if isinstance(self.given, Preprocessing):
            steps = self.given.of(index, origin)
        else:
            steps = self.given.get(origin.name, Preprocessing())
        return steps if steps.layout else steps.model_copy(update={"layout": origin.layout})

    def names(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """The names by which samples give the inputs: those of the source model."""
        return tuple(origin.name for origin in self.source)

    def key(self, specs: Sequence[TensorSpec]) -> Any:
        """What identifies the preprocessing of the inputs that ``specs`` describe, for cache keys."""
        if (
            isinstance(self.given, Preprocessing)
            and len(specs) == len(self.source) == 1
            and (self.given.layout or specs[0].layout == self.source[0].layout)
        ):
            return self.given.key(specs)  # the short form of stores from before inputs had names
        steps = [self.of(index, spec).model_dump(mode="json") for index, spec in enumerate(specs)]
        return [self.names(specs), steps]


def batched(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs of a model, each with a batch axis.

    The state of a recurrent layer, ``[layers, batch, units]``, and a scalar have none as their first: one
    sample is the whole tensor. The batch is the smallest size of all first axes.
    """
    first = [spec.shape[0] or 1 for spec in specs if spec.shape]
    batch = min(first, default=1)
    return tuple(
        spec
        if spec.shape and (spec.shape[0] or batch) == batch
        else spec.model_copy(update={"shape": (1, *spec.shape)})
        for spec in specs
    )


def arrange(batch: Array, source: Layout | None, target: Layout | None) -> Array:
    """Transpose a batch of rank 4 between layouts; other arrays are returned unchanged."""
    if source is None or target is None or source == target or batch.ndim != 4:
        return batch
    import numpy as np

    axes = (0, 3, 1, 2) if target == "NCHW" else (0, 2, 3, 1)
    return np.ascontiguousarray(batch.transpose(axes))


class Model(BaseModel):
    """Files and a format tag. ``path`` is the main file, or the folder of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    format: str
    path: Path
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    code: Path | None = Field(
        None,
        description="folder of the Python code that builds a PyTorch module, or file of the custom layers of "
        "a Keras model; not part of its identity",
    )
    transposes: int | None = Field(None, description="TRANSPOSE operators in the graph, if counted")
