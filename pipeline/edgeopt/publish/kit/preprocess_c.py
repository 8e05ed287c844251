"""A recipe's preprocessing as C: what the templates of the firmware kit need to know of one input.

Two versions agree with ``Preprocessing.apply`` and the quantization of the agent to the last unit. The float
version does the same operations on float32 in the same order. The fixed one uses no floating point: every
value that a raw sample can hold is run through the Python code here, and what came out is put into a table,
or into runs of equal results. Multiplying by an integer instead would not give the same: float32 rounds twice
before the result is rounded, which moves some 16-bit results that are close to a half.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from edgeopt.errors import CannotRunError
from edgeopt.evaluation.samples import quantize
from edgeopt.model import Array, Layout, Preprocessing, TensorSpec
from edgeopt.publish.kit.c_arrays import c_type, float_literal, literals

MOST_RUNS = 4096
"""Of equal results, as a table in flash: 16 KiB at most."""
QUANTIZED = ("int8", "uint8", "int16", "uint16")
"""What a scale and a zero point are stored in."""
SMALL = {"bool": (0, 255), "uint8": (0, 255), "int8": (-128, 127)}
WIDE = {"uint16": (0, 65535), "int16": (-32768, 32767)}


@dataclass(frozen=True)
class Fixed:
    """The version without floating point, or why there is none."""

    kind: Literal["table", "runs", "copy", "none"]
    reason: str = ""
    starts: tuple[tuple[str, ...], ...] = ()
    """Per channel, for runs: the raw value that each begins with."""
    values: tuple[tuple[str, ...], ...] = ()
    """Per channel: the results, by raw value or by run."""


@dataclass(frozen=True)
class InputCode:
    """One input. Indices in the templates: ``i`` counts what the model takes, ``at`` the raw sample."""

    index: int
    elements: int
    shape: tuple[int, ...]
    raw_dtype: str
    raw_layout: Layout | None
    raw_type: str
    type: str
    spec: TensorSpec
    at: str
    channel: str
    """Expression of ``at``; empty where all channels are treated alike."""
    channels: int
    scale: str
    mean: tuple[str, ...]
    std: tuple[str, ...]
    real: bool
    """Whether the numbers are computed with; otherwise they only change their type."""
    quantized: bool
    step: str
    zero_point: int
    lowest: int
    highest: int
    fixed: Fixed


def input_code(
    index: int, spec: TensorSpec, shape: tuple[int, ...], raw: Array | None, how: Preprocessing
) -> InputCode:
    """Everything about input ``index``.

    ``shape`` is that of the model's input without its batch axis, ``raw`` one raw sample; if None is known,
    the code takes float32.

    Raises:
        CannotRunError: the model takes a type for which there is no C code.
    """
    dtype = np.dtype(spec.dtype)
    what = f"input {spec.name!r}"
    quantized = spec.scale is not None and dtype.kind in "iu"
    if quantized and spec.dtype not in QUANTIZED:
        raise CannotRunError(
            f"{what} is quantized to {spec.dtype}, for which there is no C code",
            fix=f"types that can be had: {', '.join(QUANTIZED)}",
        )
    source = how.layout or spec.layout
    raw_shape = raw.shape if raw is not None else _raw_shape(shape, source, spec.layout)
    raw_dtype = raw.dtype.name if raw is not None else "float32"
    channels = max(len(how.mean), len(how.std))
    channels = channels if channels > 1 else 1
    limits = np.iinfo(spec.dtype) if quantized else None
    return InputCode(
        index=index,
        elements=prod(shape),
        shape=(1, *shape),
        raw_dtype=raw_dtype,
        raw_layout=source,
        raw_type=c_type(raw_dtype, f"the data for {what}"),
        type=c_type(spec.dtype, what),
        spec=spec,
        at=_at(shape, source, spec.layout),
        channel=_channel(raw_shape, source) if channels > 1 else "",
        channels=channels,
        scale=float_literal(how.scale) if how.scale != 1.0 else "",
        mean=_per_channel(how.mean, channels),
        std=_per_channel(how.std, channels),
        real=quantized or how.changes_values,
        quantized=quantized,
        step=float_literal(spec.scale or 1.0),
        zero_point=spec.zero_point or 0,
        lowest=int(limits.min) if limits else 0,
        highest=int(limits.max) if limits else 0,
        fixed=fixed(how, spec, raw_dtype if raw is not None else None, channels),
    )


def fixed(how: Preprocessing, spec: TensorSpec, raw_dtype: str | None, channels: int = 1) -> Fixed:
    """The version without floating point for raw samples of ``raw_dtype``."""
    if raw_dtype is None:
        return Fixed("none", "the run had no data, so the type of raw samples is not known")
    whole = np.dtype(raw_dtype).kind in "iu" and np.dtype(spec.dtype).kind in "iu"
    if whole and spec.scale is None and not how.changes_values:
        return Fixed("copy")
    if raw_dtype not in SMALL | WIDE:
        return Fixed(
            "none", f"raw samples are {raw_dtype}: only 8 and 16 bit integers have few enough values"
        )
    lowest, highest = (SMALL | WIDE)[raw_dtype]
    values = np.arange(lowest, highest + 1).astype("uint8" if raw_dtype == "bool" else raw_dtype)
    results = converted(values, how, spec, channels)
    if raw_dtype in SMALL:
        # In the order of the bits, so that a signed value needs no offset.
        order = np.argsort(values.view(np.uint8), kind="stable")
        return Fixed("table", values=tuple(tuple(literals(column)) for column in results[order].T))
    if results.dtype.kind in "iu" and np.array_equal(results, np.repeat(values[:, np.newaxis], channels, 1)):
        return Fixed("copy")
    found = _runs(values, results)
    if found is not None:
        return found
    return Fixed(
        "none",
        f"raw samples are {raw_dtype}, and a table of all their {spec.dtype} results would be too large",
    )


def converted(values: Array, how: Preprocessing, spec: TensorSpec, channels: int = 1) -> Array:
    """Results ``[values, channels]`` of preprocessing and quantization for raw values ``[values]``."""
    # Element by element nothing depends on the layout, so channels come last here.
    plain = how.model_copy(update={"layout": None})
    quantized = spec.scale is not None and np.dtype(spec.dtype).kind in "iu"
    update = {"layout": None} | ({"dtype": "float32"} if quantized else {})
    columns = np.repeat(values[:, np.newaxis], channels, axis=1)
    real = plain.apply(columns, spec.model_copy(update=update))[0]
    results: Array = quantize(real, spec) if quantized else real.astype(spec.dtype)
    return results


def _runs(values: Array, results: Array) -> Fixed | None:
    """Raw values at which the result changes; all channels have as many, the last one being repeated."""
    starts = [np.flatnonzero(np.r_[True, column[1:] != column[:-1]]) for column in results.T]
    count = max(map(len, starts))
    if count * len(starts) > MOST_RUNS:
        return None
    padded = [np.r_[places, np.repeat(places[-1], count - len(places))] for places in starts]
    return Fixed(
        "runs",
        starts=tuple(tuple(literals(values[places])) for places in padded),
        values=tuple(tuple(literals(results[places, k])) for k, places in enumerate(padded)),
    )


def _raw_shape(shape: tuple[int, ...], source: Layout | None, target: Layout | None) -> tuple[int, ...]:
    if source is None or target is None or source == target or len(shape) != 3:
        return shape
    return (shape[2], shape[0], shape[1]) if source == "NCHW" else (shape[1], shape[2], shape[0])


def _at(shape: tuple[int, ...], source: Layout | None, target: Layout | None) -> str:
    """Where in the raw sample the element ``i`` of the model's input is."""
    if source is None or target is None or source == target or len(shape) != 3:
        return "i"
    channels, plane = (shape[2], shape[0] * shape[1]) if target == "NHWC" else (shape[0], shape[1] * shape[2])
    if target == "NHWC":
        return f"(i % {channels}u) * {plane}u + i / {channels}u"
    return f"(i % {plane}u) * {channels}u + i / {plane}u"


def _channel(raw_shape: tuple[int, ...], source: Layout | None) -> str:
    """The channel of a raw element: the first axis in NCHW, the last one in all else."""
    if source == "NCHW":
        return f"at / {prod(raw_shape[1:])}u"
    return f"at % {raw_shape[-1]}u"


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[str, ...]:
    given = values * channels if len(values) == 1 else values
    return tuple(float_literal(value) for value in np.asarray(given, np.float32))
