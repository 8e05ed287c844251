"""What every dataset shares: samples are checked, and stacked as the inputs of a model.

Datasets only yield what they find. That it is not empty, finite and of one shape is checked here,
once for all of them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.model import Array, Layout, Preprocessing, TensorSpec, arrange
from edgeopt.plugin import Dataset, Sample


def title(dataset: Dataset) -> str:
    """How messages call a dataset: the path of its data, or the name of its kind."""
    path = getattr(dataset, "path", None)
    function = getattr(dataset, "function", None)
    return str(path or getattr(function, "target", None) or type(dataset).__name__.lower())


def checked(dataset: Dataset) -> Iterator[Sample]:
    """The samples of ``dataset``, each one checked as it passes.

    Raises:
        UsageError: when there is none, when one holds NaN or infinity or anything but numbers, or
            when one differs in shape from the first. The message names the sample's index.
    """
    shapes: list[tuple[int, ...]] | None = None
    labelled = False
    for index, sample in enumerate(dataset.samples()):
        where = f"{title(dataset)}: sample {index}"
        for position, value in enumerate(sample.inputs):
            _check_values(value, where, f"input {position}" if len(sample.inputs) > 1 else "the input")
        if sample.label is not None and not isinstance(sample.label, int):
            _check_values(sample.label, where, "the label")
        found = [value.shape for value in sample.inputs]
        if shapes is None:
            shapes, labelled = found, sample.label is not None
        if found != shapes:
            raise UsageError(
                f"{where} has shape {_listed(found)}, the samples before it {_listed(shapes)}",
                fix="bring all samples to one shape, for images with the option 'size'",
            )
        if (sample.label is not None) != labelled:
            raise UsageError(f"{where} has {'no' if labelled else 'a'} label, unlike the samples before it")
        yield sample
    if shapes is None:
        raise UsageError(f"{title(dataset)}: no samples", fix="a dataset must yield at least one sample")


def fingerprint(sample: Sample) -> int:
    """64 bits of a hash of the inputs of a sample: equal for equal samples, whatever dataset yields them."""
    digest = hashlib.blake2b(digest_size=8)
    for value in sample.inputs:
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return int.from_bytes(digest.digest(), "little")


def collect(
    dataset: Dataset,
    preprocessing: Preprocessing,
    specs: Sequence[TensorSpec],
    limit: int | None = None,
) -> tuple[list[Array], Array | None]:
    """Stack the first ``limit`` samples as the inputs that ``specs`` ask for.

    Inputs have shape ``[n, ...]`` with layout and dtype of their spec, whose batch axis is not
    looked at. Labels are int64 ``[n]`` for class indices, ``[n, ...]`` for arrays, None without.
    An integer input with a scale is quantized as the spec says.

    Raises:
        UsageError: as ``checked``, and when samples do not fit the model's inputs.
    """
    inputs: list[list[Array]] = [[] for _ in specs]
    labels: list[int | Array] = []
    for index, sample in enumerate(checked(dataset)):
        if index == limit:
            break
        if len(sample.inputs) != len(specs):
            wanted = ", ".join(repr(spec.name) for spec in specs)
            raise UsageError(
                f"{title(dataset)}: a sample has {len(sample.inputs)} inputs, the model takes "
                f"{len(specs)}: {wanted}",
                fix="give the dataset one input per model input, in the model's order",
            )
        for stack, value, spec in zip(inputs, sample.inputs, specs, strict=True):
            stack.append(fitted(value, preprocessing, spec, title(dataset)))
        if sample.label is not None:
            labels.append(sample.label)
    target = None if not labels else np.stack([np.asarray(label) for label in labels])
    return [np.concatenate(stack) for stack in inputs], target


def random_inputs(specs: Sequence[TensorSpec], count: int) -> list[Array]:
    """Seeded inputs ``[count, ...]`` for ``specs``, where there is no data; a free dimension is 16.

    Floats are normally distributed, uint8 covers 0..255, other integers are 0 or 1, which every
    table of embeddings has. The same model in another layout or quantized gets the same values.
    """
    random = np.random.default_rng(0)
    arrays: list[Array] = []
    for spec in specs:
        shape = (count, *(16 if n is None else n for n in spec.shape[1:]))
        if spec.layout == "NCHW" and len(shape) == 4:
            shape = (shape[0], shape[2], shape[3], shape[1])
        dtype = np.dtype(spec.dtype)
        values: Array
        if np.issubdtype(dtype, np.integer) and spec.scale is None:
            values = random.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
        elif dtype == np.bool_:
            values = random.integers(0, 2, shape).astype(dtype)
        else:
            values = random.standard_normal(shape, np.float32)
            values = values.astype(dtype) if spec.scale is None else quantize(values, spec)
        arrays.append(arrange(values, "NHWC" if spec.layout else None, spec.layout))
    return arrays


def quantize(real: Array, spec: TensorSpec) -> Array:
    """Real numbers as the integers that ``spec`` stores them in."""
    dtype = np.dtype(spec.dtype)
    limits = np.iinfo(dtype)
    steps = np.rint(real.astype(np.float32) / np.float32(spec.scale or 1.0)) + (spec.zero_point or 0)
    clipped: Array = np.clip(steps, limits.min, limits.max).astype(dtype)
    return clipped


def dequantize(values: Array, spec: TensorSpec) -> Array:
    """The real numbers, float32, that integers of ``spec`` stand for; anything else as it is."""
    if not spec.scale or values.dtype != np.dtype(spec.dtype) or values.dtype.kind not in "iu":
        return values
    return (values.astype(np.float32) - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)


def fitted(value: Array, preprocessing: Preprocessing, spec: TensorSpec, where: str) -> Array:
    """One sample as an input of batch 1 for ``spec``."""
    dtype = np.dtype(spec.dtype)
    quantized = spec.scale is not None and np.issubdtype(dtype, np.integer)
    shape = _check_shape(value, preprocessing.layout or spec.layout, spec, where)
    real = spec.model_copy(update={"dtype": "float32"}) if quantized else spec
    with np.errstate(invalid="ignore"):  # values out of an integer's range are found below
        try:
            array = preprocessing.apply(value, real)
            reason = f"it becomes {list(array.shape[1:])}" if array.shape[1:] != shape else ""
        except ValueError as error:
            reason = str(error)
        if reason:
            raise UsageError(
                f"{where}: 'mean' and 'std' do not fit a sample of shape {list(value.shape)}: {reason}",
                fix="give them one number, or one per channel, and say in 'layout' where the channels are",
            )
        if quantized:
            return quantize(array, spec)
        wanted = array if preprocessing.changes_values else value
        if np.issubdtype(dtype, np.integer) and not np.array_equal(wanted.astype(dtype), wanted):
            raise UsageError(
                f"{where}: input {spec.name!r} takes {spec.dtype}, but the sample has other values",
                fix="give whole numbers in its range",
            )
    return array.astype(dtype, copy=False)


def _check_shape(value: Array, layout: Layout | None, spec: TensorSpec, where: str) -> tuple[int, ...]:
    """The shape that a raw sample in ``layout`` has as input for ``spec``; raises if it does not fit."""
    wanted = spec.shape[1:]

    def fits(shape: Sequence[int]) -> bool:
        return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))

    def arranged(layout: Layout | None) -> tuple[int, ...]:
        return arrange(value[np.newaxis], layout, spec.layout).shape[1:]

    if fits(arranged(layout)):
        return arranged(layout)
    shape = value.shape
    fix = "give data of the shape that the model was trained with"
    other: Layout = "NHWC" if layout == "NCHW" else "NCHW"
    if spec.layout and fits(arranged(other)):
        fix = f"it fits when read as {other}: set 'layout: {other}' in the model's 'preprocess'"
    elif fits((*shape, 1)) or fits((1, *shape)):
        fix = "it fits with an axis of length 1 added for the channel"
    elif len(shape) > 1 and shape[0] == 1 and fits(shape[1:]):
        fix = "it fits without its first axis: samples have no batch axis"
    else:
        for axes in permutations(range(min(len(shape), 4))):
            if len(axes) == len(shape) and fits([shape[axis] for axis in axes]):
                fix = f"it fits when transposed to the axes {list(axes)}; for images, set 'layout'"
                break
    takes = ", ".join("free" if n is None else str(n) for n in wanted)
    raise UsageError(
        f"{where}: a sample of shape {list(shape)} does not fit the model's input {spec.name!r}, "
        f"which takes [{takes}]" + (f" ({spec.layout})" if spec.layout else ""),
        fix=fix,
    )


def _check_values(value: Array, where: str, what: str) -> None:
    if value.dtype.kind not in "biuf":
        raise UsageError(
            f"{where}: {what} is of dtype {value.dtype}, which is not a number",
            fix="store plain arrays of integers or floats",
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        count = int(value.size - np.isfinite(value).sum())
        kind = "NaN" if np.isnan(value).any() else "infinity"
        raise UsageError(
            f"{where}: {what} holds {kind} ({count} of {value.size} values are not finite)",
            fix="remove or repair the sample",
        )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
