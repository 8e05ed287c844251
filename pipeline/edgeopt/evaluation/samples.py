"""Shared by all datasets: samples are checked, and stacked as the inputs of a model.

Datasets yield their samples unchecked. That they are finite, of one shape, and at least one, is checked
here for all of them.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.model import Array, InputPreprocessing, Layout, Preprocessing, TensorSpec, arrange, batched
from edgeopt.plugin import Dataset, Labels, PerSample, Sample


def title(dataset: Dataset) -> str:
    """The name of a dataset in messages: the path of its data, or its type."""
    while (inner := getattr(dataset, "inner", None)) is not None:  # of one that is read in another process
        dataset = inner
    places = (getattr(dataset, name, None) for name in ("path", "annotations", "images"))
    path = next((place for place in places if place is not None), None)
    function = getattr(dataset, "function", None)
    return str(path or getattr(function, "target", None) or type(dataset).__name__.lower())


def checked(dataset: Dataset) -> Iterator[Sample]:
    """Iterate over the samples of ``dataset`` and check each of them.

    Raises:
        UsageError: the dataset is empty, or a sample contains NaN, infinity or other than numbers, or
            differs from the first in shape or in the names of its inputs. The message names the sample's
            index.
    """
    shapes: list[tuple[int, ...]] | None = None
    names: tuple[str, ...] = ()
    labelled: Collection[str] = ()
    for index, sample in enumerate(dataset.samples()):
        where = f"{title(dataset)}: sample {index}"
        if shapes is None:
            names = sample.names
        elif sample.names != names:
            sample = _like_the_first(sample, names, where)
        for position, value in enumerate(sample.inputs):
            what = repr(names[position]) if names else str(position)
            _check_values(value, where, f"input {what}" if len(sample.inputs) > 1 else "the input")
        for task, label in sample.labels.items():
            if not isinstance(label, int):
                _check_values(label, where, f"the label of {task}" if task else "the label")
        current = [value.shape for value in sample.inputs]
        if shapes is None:
            shapes, labelled = current, sample.labels.keys()
        if current != shapes:
            raise UsageError(
                f"{where} has shape {_listed(current)}, the previous samples have {_listed(shapes)}",
                fix="give all samples the same shape; for images, set the option 'size'",
            )
        if sample.labels.keys() != labelled:
            missing = "no" if len(sample.labels) < len(labelled) else "a"
            raise UsageError(f"{where} has {missing} label, unlike the previous samples")
        yield sample
    if shapes is None:
        raise UsageError(f"{title(dataset)}: no samples", fix="a dataset must yield at least one sample")


def _like_the_first(sample: Sample, names: tuple[str, ...], where: str) -> Sample:
    """A sample whose inputs have names, or another order of them, than those of the first."""
    if sorted(sample.names) != sorted(names):
        listed, first = (", ".join(map(repr, each)) or "no names" for each in (sample.names, names))
        raise UsageError(
            f"{where} has inputs with {listed}, the previous samples have {first}",
            fix="give all samples the same inputs",
        )
    return Sample(sample.in_order(names), sample.label, names)


def fingerprint(inputs: Sequence[Array]) -> int:
    """64-bit hash of the inputs of a sample: equal samples of different datasets have equal hashes."""
    digest = hashlib.blake2b(digest_size=8)
    for value in inputs:
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return int.from_bytes(digest.digest(), "little")


def collect(
    dataset: Dataset,
    preprocessing: Preprocessing | InputPreprocessing,
    specs: Sequence[TensorSpec],
    limit: int | None = None,
) -> tuple[list[Array], Labels | None]:
    """Stack the first ``limit`` samples as inputs for ``specs``.

    Inputs have shape ``[n, ...]`` with the layout and dtype of their spec, whose batch axis is ignored; of an
    input without a batch axis, such as a state ``[layers, batch, units]``, each of the n is a whole tensor.
    Labels are int64 ``[n]`` for class indices, ``[n, ...]`` for arrays of one shape, ``n`` arrays if their
    shapes differ, or None; if a sample has labels for several tasks, by their names. An integer input with a
    scale is quantized with the scale and zero point of its spec.

    Raises:
        UsageError: as ``checked``, or the samples do not match the model's inputs.
    """
    where, names = title(dataset), preprocessing.names(specs)
    specs = batched(specs)
    steps = [preprocessing.of(index, spec) for index, spec in enumerate(specs)]
    inputs: list[list[Array]] = [[] for _ in specs]
    labels: dict[str, list[Array]] = {}
    for index, sample in enumerate(checked(dataset)):
        if index == limit:
            break
        values = sample.in_order(names, where)
        for stack, value, each, spec in zip(inputs, values, steps, specs, strict=True):
            stack.append(fitted(value, each, spec, where, of=len(specs)))
        for task, label in sample.labels.items():
            labels.setdefault(task, []).append(np.asarray(label))
    return [np.concatenate(stack) for stack in inputs], by_task(labels)


def by_task(labels: Mapping[str, Sequence[Array]]) -> Labels | None:
    """The labels of all samples as an array or a list, or for several tasks, by their names; None without."""
    if not labels:
        return None
    joined = {task: stacked(rows) for task, rows in labels.items()}
    return joined[""] if joined.keys() == {""} else joined


def stacked(labels: Sequence[Array]) -> PerSample:
    """Labels of one shape as an array ``[n, ...]``; others as they are."""
    return np.stack(labels) if len({label.shape for label in labels}) == 1 else labels


def random_inputs(specs: Sequence[TensorSpec], count: int) -> list[Array]:
    """Random inputs ``[count, ...]`` for ``specs``, with a fixed seed; free dimensions have size 16.

    Floats are normally distributed, uint8 is uniform in 0..255, other integers are 0 or 1, which are valid
    indices of every embedding table. The values do not depend on the layout or quantization of the model.
    """
    random = np.random.default_rng(0)
    arrays: list[Array] = []
    for spec in batched(specs):
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
    """Quantize real numbers to the integers of ``spec``."""
    dtype = np.dtype(spec.dtype)
    limits = np.iinfo(dtype)
    steps = np.rint(real.astype(np.float32) / np.float32(spec.scale or 1.0)) + (spec.zero_point or 0)
    clipped: Array = np.clip(steps, limits.min, limits.max).astype(dtype)
    return clipped


def dequantize(values: Array, spec: TensorSpec) -> Array:
    """Dequantize integers of ``spec`` to float32; return anything else unchanged."""
    if not spec.scale or values.dtype != np.dtype(spec.dtype) or values.dtype.kind not in "iu":
        return values
    return (values.astype(np.float32) - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)


def fitted(value: Array, preprocessing: Preprocessing, spec: TensorSpec, where: str, *, of: int = 1) -> Array:
    """Convert one sample to an input of batch 1 for ``spec``; ``of`` is the number of inputs of the model.

    Raises:
        UsageError: its shape or its values do not match the input.
    """
    dtype = np.dtype(spec.dtype)
    quantized = spec.scale is not None and dtype.kind in "iu"
    shape = _check_shape(value, preprocessing.layout or spec.layout, spec, where)
    computed = quantized or preprocessing.changes_values
    real = spec.model_copy(update={"dtype": "float32"}) if computed and dtype.kind in "biu" else spec
    with np.errstate(invalid="ignore"):  # values outside the integer range are detected below
        try:
            array = preprocessing.apply(value, real)
            reason = f"it becomes {list(array.shape[1:])}" if array.shape[1:] != shape else ""
        except ValueError as error:
            reason = str(error)
        if reason:
            fix = "set one number, or one per channel, and declare the channel axis with 'layout'"
            if of > 1:
                fix += f"; or preprocess each input by itself: 'preprocess: {{{spec.name}: {{...}}}}'"
            raise UsageError(
                f"{where}: 'mean' and 'std' do not match a sample of shape {list(value.shape)}: {reason}",
                fix=fix,
            )
        if quantized:
            return quantize(array, spec)
        exact = array if preprocessing.changes_values else value
        if dtype.kind in "biu" and not np.array_equal(exact.astype(dtype), exact):
            raise UsageError(
                f"{where}: input {spec.name!r} takes {spec.dtype}, but the sample has other values",
                fix="provide integers in its range",
            )
    return array.astype(dtype, copy=False)


def _check_shape(value: Array, layout: Layout | None, spec: TensorSpec, where: str) -> tuple[int, ...]:
    """The shape of a raw sample in ``layout`` as input for ``spec``; raise if it does not match."""
    expected = spec.shape[1:]

    def fits(shape: Sequence[int]) -> bool:
        return len(shape) == len(expected) and all(
            size in (None, actual) for actual, size in zip(shape, expected, strict=True)
        )

    def arranged(layout: Layout | None) -> tuple[int, ...]:
        return arrange(value[np.newaxis], layout, spec.layout).shape[1:]

    if fits(arranged(layout)):
        return arranged(layout)
    shape = value.shape
    fix = "provide data of the shape that the model was trained with"
    other: Layout = "NHWC" if layout == "NCHW" else "NCHW"
    if spec.layout and fits(arranged(other)):
        fix = f"it matches as {other}: set 'layout: {other}' in the model's 'preprocess'"
    elif fits((*shape, 1)) or fits((1, *shape)):
        fix = "it matches with an added channel axis of length 1"
    elif len(shape) > 1 and shape[0] == 1 and fits(shape[1:]):
        fix = "it matches without its first axis: samples have no batch axis"
    else:
        for axes in permutations(range(min(len(shape), 4))):
            if len(axes) == len(shape) and fits([shape[axis] for axis in axes]):
                fix = f"it matches when transposed to the axes {list(axes)}; for images, set 'layout'"
                break
    takes = ", ".join("free" if n is None else str(n) for n in expected)
    raise UsageError(
        f"{where}: a sample of shape {list(shape)} does not match the model's input {spec.name!r}, "
        f"which takes [{takes}]" + (f" ({spec.layout})" if spec.layout else ""),
        fix=fix,
    )


def _check_values(value: Array, where: str, what: str) -> None:
    if value.dtype.kind not in "biuf":
        raise UsageError(
            f"{where}: {what} has dtype {value.dtype}, which is not numeric",
            fix="store plain arrays of integers or floats",
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        count = int(value.size - np.isfinite(value).sum())
        kind = "NaN" if np.isnan(value).any() else "infinity"
        raise UsageError(
            f"{where}: {what} contains {kind} ({count} of {value.size} values are not finite)",
            fix="remove or fix the sample",
        )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
