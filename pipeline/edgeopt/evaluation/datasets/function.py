"""Samples from a user-defined function."""

import hashlib
import inspect
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.plugin import Code, Dataset, Sample, canonical


class Function(Dataset):
    """Call ``module:function`` and use the samples that it returns.

    Supported results are an iterable (or generator) of ``(input, label)``, a PyTorch ``Dataset`` or
    ``DataLoader``, a ``tf.data.Dataset``, and a tuple of arrays ``(x, y)`` with samples along the first
    axis. For a model with several inputs, an input is a tuple in the model's order, or a dictionary by the
    names of its inputs; an element that is not a tuple is an input without label. Tensors are converted to
    NumPy arrays, and batches are split.

    The random generators of Python, NumPy, PyTorch and TensorFlow are seeded before each pass, so that a
    shuffling loader returns the same order every time.
    """

    function: Code = Field(description="the function, as module:name")
    arguments: dict[str, Any] = Field({}, description="keyword arguments for the function")
    batched: bool | None = Field(None, description="whether elements are batches; default: detected")
    limit: int | None = Field(None, gt=0, description="read only the first samples")

    def samples(self) -> Iterator[Sample]:
        function = self.function.load()
        _seed()
        try:
            inspect.signature(function).bind(**self.arguments)
        except TypeError as error:
            raise UsageError(f"{self.function.target}: {error}", fix="correct 'arguments'") from error
        source = function(**self.arguments)
        _seed()  # again: the call may have imported a framework
        for index, element in enumerate(self._elements(source)):
            if index == self.limit:
                return
            yield self._sample(element, index)

    def digest(self) -> str:
        """sha256 of code, arguments and everything yielded: one pass over the data."""
        digest = hashlib.sha256()
        digest.update(canonical([self.function.digest(), self.arguments, self.batched, self.limit]).encode())
        for sample in self.samples():
            tasks = [task for task in sample.labels if task]
            if sample.names or tasks:
                digest.update(canonical([sample.names, tasks]).encode())
            labels = sample.labels.values() or (-1,)
            for value in (*sample.inputs, *map(np.asarray, labels)):
                digest.update(f"{value.dtype.str}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def _elements(self, source: Any) -> Iterator[Any]:
        """The elements of any supported result, without a batch axis."""
        batched = self.batched
        if isinstance(source, tuple) and source and _is_column(source[0]):
            return self._columns(source)
        if batched is None:
            batched = _is_batched(source)
        elements = _in_order(source, self.function.target)
        return (row for batch in elements for row in _rows(batch)) if batched else iter(elements)

    def _columns(self, arrays: tuple[Any, ...]) -> Iterator[Any]:
        """The rows of ``(x, y)``, ``(x1, x2, ..., y)`` or, without labels, ``(x, None)`` and ``(x,)``.

        ``x`` may be a dictionary of arrays.
        """
        inputs, label = (arrays[:-1], arrays[-1]) if len(arrays) > 1 else (arrays, None)
        names = tuple(inputs[0]) if isinstance(inputs[0], dict) and len(inputs) == 1 else ()
        inputs = tuple(inputs[0].values()) if names else inputs
        lengths = [len(part) for part in (*inputs, label) if part is not None]
        if len(set(lengths)) > 1:
            raise UsageError(
                f"{self.function.target}: the arrays differ in length: {lengths}",
                fix="return one label per sample",
            )
        rows: Iterator[Any] = zip(*inputs, strict=True)
        if names:
            rows = (dict(zip(names, row, strict=True)) for row in rows)
        return ((row, None) for row in rows) if label is None else zip(rows, label, strict=True)

    def _sample(self, element: Any, index: int) -> Sample:
        if isinstance(element, Sample):
            return element
        parted = isinstance(element, tuple)
        inputs, label = element if parted and len(element) == 2 else (element, None)
        if parted and len(element) > 2:
            raise UsageError(
                f"{self.function.target}: sample {index} has an unsupported type: tuple of {len(element)}",
                fix="yield (input, label); for several inputs ((input, input, ...), label), or "
                "({name: input, ...}, label)",
            )
        if isinstance(inputs, dict):
            named = {str(name): _array(part) for name, part in inputs.items()}
            return Sample(named, _label(label))
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        return Sample(tuple(_array(part) for part in parts), _label(label))


def _label(label: Any) -> int | Array | Mapping[str, int | Array] | None:
    if label is None:
        return None
    if isinstance(label, Mapping):
        return {str(task): _single_label(each) for task, each in label.items()}
    return _single_label(label)


def _single_label(label: Any) -> int | Array:
    value = _array(label)
    whole = value.ndim == 0 and value.dtype.kind in "biu"
    return int(value[()]) if whole else value


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a PyTorch tensor, maybe with a gradient or on a GPU
        value = value.detach().cpu()
    return np.asarray(value)


def _is_column(value: Any) -> bool:
    """Whether a value is an array with samples along the first axis, or a dictionary of such arrays."""
    if isinstance(value, dict):
        return bool(value) and all(map(_is_column, value.values()))
    return hasattr(value, "shape")


def _rows(batch: Any) -> Iterator[Any]:
    """The elements of one batch, which may be nested tuples or dictionaries of arrays."""
    if isinstance(batch, dict):
        rows = zip(*(_rows(part) for part in batch.values()), strict=True)
        yield from (dict(zip(batch, row, strict=True)) for row in rows)
        return
    if isinstance(batch, tuple | list):
        yield from zip(*(_rows(part) for part in batch), strict=True)
        return
    array = _array(batch)
    if array.ndim == 0:
        raise UsageError(
            f"a batch contains {type(batch).__name__}, which has no rows",
            fix="yield batches of (inputs, labels), or set 'batched: false'",
        )
    yield from array


def _kind(source: Any) -> str:
    """``torch``, ``tf`` or empty, from the class only, so that no framework is imported."""
    modules = [base.__module__ for base in type(source).__mro__]
    if any(module.startswith("torch.utils.data") for module in modules):
        return "torch"
    return "tf" if hasattr(source, "element_spec") else ""


def _is_batched(source: Any) -> bool:
    kind = _kind(source)
    if kind == "torch":
        return getattr(source, "batch_sampler", None) is not None
    if kind != "tf":
        return False
    shapes: list[Any] = [spec.shape for spec in _leaves(source.element_spec)]
    if any(shape.rank in (0, None) for shape in shapes):
        return False
    first = {shape[0] for shape in shapes}
    # A free leading axis is the batch axis; so is a fixed one that input and label share.
    return len(first) == 1 and (first == {None} or len(shapes) > 1)


def _leaves(spec: Any) -> Iterator[Any]:
    if isinstance(spec, tuple | list):
        for part in spec:
            yield from _leaves(part)
    elif isinstance(spec, dict):
        yield from spec.values()
    else:
        yield spec


def _in_order(source: Any, name: str) -> Iterable[Any]:
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "__iter__"):
        return (source[index] for index in range(len(source)))
    if not isinstance(source, Iterable):
        raise UsageError(
            f"{name} returned {type(source).__name__}, which contains no samples",
            fix="return an iterable of (input, label), a Dataset, a DataLoader, or a tuple of arrays",
        )
    if _kind(source) == "torch":  # a DataLoader collates the tuples of its Dataset into lists
        return (tuple(element) if isinstance(element, list) else element for element in source)
    return source


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)
