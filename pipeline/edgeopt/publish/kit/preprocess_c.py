"""A recipe's preprocessing as C: the values that the firmware kit's templates need for one input.

Both versions match ``Preprocessing.apply`` and the quantization of the agent exactly. The float version does
the same float32 operations in the same order. The fixed version uses no floating point: every value that a
raw sample can hold is run through the Python code here, and the results are stored as a table or as runs of
equal results. Multiplying by an integer instead would not be exact: float32 rounds twice before the result is
rounded, which moves some 16-bit results that are close to a half.
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
"""Limit of runs of equal results: at most 16 KiB of flash."""
QUANTIZED = ("int8", "uint8", "int16", "uint16")
"""Types that an input can be quantized to."""
SMALL = {"bool": (0, 255), "uint8": (0, 255), "int8": (-128, 127)}
WIDE = {"uint16": (0, 65535), "int16": (-32768, 32767)}


@dataclass(frozen=True)
class Fixed:
    """The version without floating point, or the reason for its absence."""

    kind: Literal["table", "runs", "copy", "none"]
    reason: str = ""
    starts: tuple[tuple[str, ...], ...] = ()
    """Per channel, for runs: the first raw value of each run."""
    values: tuple[tuple[str, ...], ...] = ()
    """Per channel: the results, by raw value or by run."""


@dataclass(frozen=True)
class InputCode:
    """Template values of one input. ``i`` indexes the model's input and ``at`` the raw sample."""

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
    """C expression in ``at``; empty if all channels are treated alike."""
    channels: int
    scale: str
    mean: tuple[str, ...]
    std: tuple[str, ...]
    real: bool
    """Whether preprocessing changes values; otherwise it only converts their type."""
    quantized: bool
    step: str
    zero_point: int
    lowest: int
    highest: int
    fixed: Fixed


def input_code(
    index: int, spec: TensorSpec, shape: tuple[int, ...], raw: Array | None, preprocessing: Preprocessing
) -> InputCode:
    """The template values of input ``index``.

    ``shape`` is the shape of the model's input without its batch axis, ``raw`` one raw sample; if ``raw`` is
    None, the code takes float32.

    Raises:
        CannotRunError: no C code can be generated for the type of the input.
    """
    dtype = np.dtype(spec.dtype)
    what = f"input {spec.name!r}"
    quantized = spec.scale is not None and dtype.kind in "iu"
    if quantized and spec.dtype not in QUANTIZED:
        raise CannotRunError(
            f"{what} is quantized to {spec.dtype}, for which no C code can be generated",
            fix=f"supported types: {', '.join(QUANTIZED)}",
        )
    source = preprocessing.layout or spec.layout
    raw_shape = raw.shape if raw is not None else _raw_shape(shape, source, spec.layout)
    raw_dtype = raw.dtype.name if raw is not None else "float32"
    channels = max(len(preprocessing.mean), len(preprocessing.std))
    channels = channels if channels > 1 else 1
    limits = np.iinfo(spec.dtype) if quantized else None
    return InputCode(
        index=index,
        elements=prod(shape),
        shape=(1, *shape),
        raw_dtype=raw_dtype,
        raw_layout=source,
        raw_type=c_type(raw_dtype, f"the raw data of {what}"),
        type=c_type(spec.dtype, what),
        spec=spec,
        at=_at(shape, source, spec.layout),
        channel=_channel(raw_shape, source) if channels > 1 else "",
        channels=channels,
        scale=float_literal(preprocessing.scale) if preprocessing.scale != 1.0 else "",
        mean=_per_channel(preprocessing.mean, channels),
        std=_per_channel(preprocessing.std, channels),
        real=quantized or preprocessing.changes_values,
        quantized=quantized,
        step=float_literal(spec.scale or 1.0),
        zero_point=spec.zero_point or 0,
        lowest=int(limits.min) if limits else 0,
        highest=int(limits.max) if limits else 0,
        fixed=fixed(preprocessing, spec, raw_dtype if raw is not None else None, channels),
    )


def fixed(preprocessing: Preprocessing, spec: TensorSpec, raw_dtype: str | None, channels: int = 1) -> Fixed:
    """The version without floating point for raw samples of ``raw_dtype``."""
    if raw_dtype is None:
        return Fixed("none", "the run had no data, so the type of raw samples is unknown")
    whole = np.dtype(raw_dtype).kind in "iu" and np.dtype(spec.dtype).kind in "iu"
    if whole and spec.scale is None and not preprocessing.changes_values:
        return Fixed("copy")
    if raw_dtype not in SMALL | WIDE:
        return Fixed("none", f"raw samples are {raw_dtype}: only 8-bit and 16-bit integers can be tabulated")
    lowest, highest = (SMALL | WIDE)[raw_dtype]
    values = np.arange(lowest, highest + 1).astype("uint8" if raw_dtype == "bool" else raw_dtype)
    results = converted(values, preprocessing, spec, channels)
    if raw_dtype in SMALL:
        # Ordered by bit pattern, so that the index of a signed value needs no offset.
        order = np.argsort(values.view(np.uint8), kind="stable")
        return Fixed("table", values=tuple(tuple(literals(column)) for column in results[order].T))
    if results.dtype.kind in "iu" and np.array_equal(results, np.repeat(values[:, np.newaxis], channels, 1)):
        return Fixed("copy")
    runs = _runs(values, results)
    if runs is not None:
        return runs
    return Fixed(
        "none",
        f"raw samples are {raw_dtype}, and a table of all their {spec.dtype} results would be too large",
    )


def converted(values: Array, preprocessing: Preprocessing, spec: TensorSpec, channels: int = 1) -> Array:
    """Results ``[values, channels]`` of preprocessing and quantization for raw values ``[values]``."""
    # The operations are element-wise, so the layout does not matter: channels come last here.
    plain = preprocessing.model_copy(update={"layout": None})
    quantized = spec.scale is not None and np.dtype(spec.dtype).kind in "iu"
    update = {"layout": None} | ({"dtype": "float32"} if quantized else {})
    columns = np.repeat(values[:, np.newaxis], channels, axis=1)
    real = plain.apply(columns, spec.model_copy(update=update))[0]
    results: Array = quantize(real, spec) if quantized else real.astype(spec.dtype)
    return results


def _runs(values: Array, results: Array) -> Fixed | None:
    """Raw values at which the result changes; channels with fewer repeat their last run."""
    starts = [np.flatnonzero(np.r_[True, column[1:] != column[:-1]]) for column in results.T]
    count = max(map(len, starts))
    if count * len(starts) > MOST_RUNS:
        return None
    padded = [np.r_[indices, np.repeat(indices[-1], count - len(indices))] for indices in starts]
    return Fixed(
        "runs",
        starts=tuple(tuple(literals(values[indices])) for indices in padded),
        values=tuple(tuple(literals(results[indices, k])) for k, indices in enumerate(padded)),
    )


def _raw_shape(shape: tuple[int, ...], source: Layout | None, target: Layout | None) -> tuple[int, ...]:
    if source is None or target is None or source == target or len(shape) != 3:
        return shape
    return (shape[2], shape[0], shape[1]) if source == "NCHW" else (shape[1], shape[2], shape[0])


def _at(shape: tuple[int, ...], source: Layout | None, target: Layout | None) -> str:
    """C expression: the index in the raw sample of element ``i`` of the model's input."""
    if source is None or target is None or source == target or len(shape) != 3:
        return "i"
    channels, plane = (shape[2], shape[0] * shape[1]) if target == "NHWC" else (shape[0], shape[1] * shape[2])
    if target == "NHWC":
        return f"(i % {channels}u) * {plane}u + i / {channels}u"
    return f"(i % {plane}u) * {channels}u + i / {plane}u"


def _channel(raw_shape: tuple[int, ...], source: Layout | None) -> str:
    """C expression: the channel of a raw element, the first axis in NCHW, otherwise the last."""
    if source == "NCHW":
        return f"at / {prod(raw_shape[1:])}u"
    return f"at % {raw_shape[-1]}u"


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[str, ...]:
    given = values * channels if len(values) == 1 else values
    return tuple(float_literal(value) for value in np.asarray(given, np.float32))
