"""Samples from the arrays of an ``.npz`` file."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from itertools import islice, pairwise
from math import prod
from pathlib import Path
from typing import IO, Annotated, Self, TypeAlias

import numpy as np
from numpy.lib import format as npy
from pydantic import Field, model_validator

from edgeopt.config.files import CHUNK, file_digest
from edgeopt.config.nearest import nearest
from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets._named_inputs import SomeNames, input_names, or_by_name, sources
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

Label: TypeAlias = int | Array | Mapping[str, int | Array] | None
DAMAGED = (OSError, *MALFORMED)


class Npz(Dataset):
    """Arrays saved with ``numpy.savez`` or ``savez_compressed``, with samples along the first axis.

    The archive is read in chunks, so the file may exceed the memory. (In an array in Fortran order rows are
    not contiguous; it is loaded at once.) Pickled objects are rejected. Integer labels of shape ``[n]`` are
    class indices; others are passed on as arrays, so for an autoencoder set ``label: x``, its own input.

    For a model with several inputs, ``inputs: {ids: tokens, mask: valid}`` gives the arrays of its inputs
    ``ids`` and ``mask``.

    Labels of different lengths, such as boxes or transcripts, are stored one after the other, with
    ``offsets``: the label of sample i is ``y[offsets[i]:offsets[i + 1]]``, which may be empty.

    For a model with several tasks, ``label: {kind: y, boxes+scores: boxes}`` gives the labels of each by its
    name, and ``offsets: {boxes+scores: ends}`` the offsets.
    """

    path: ExistingPath = Field(description="the .npz file")
    inputs: Annotated[tuple[str, ...] | dict[str, str], or_by_name(SomeNames)] = Field(
        ("x",), description="keys of the inputs, in the model's order or by the names of its inputs"
    )
    label: str | dict[str, str] | None = Field(
        "y",
        description="key of the labels, or the keys by task; unless given, data without 'y' have none; "
        "null: none",
    )
    offsets: str | dict[str, str] | None = Field(
        None,
        description="key of the offsets [n + 1] of labels of different lengths into the rows of 'label', or "
        "the keys by task",
    )
    limit: int | None = Field(None, gt=0, description="read only the first samples")

    @model_validator(mode="after")
    def _of_the_same_tasks(self) -> Self:
        if isinstance(self.offsets, dict) != isinstance(self.label, dict) and self.offsets is not None:
            raise ValueError("give 'label' and 'offsets' both as keys, or both as mappings by task")
        if isinstance(self.offsets, dict) and isinstance(self.label, dict):
            for task in self.offsets:
                if task not in self.label:
                    raise ValueError(
                        f"'offsets' has {task!r}, and 'label' has not{nearest(task, self.label)}"
                    )
        return self

    def samples(self) -> Iterator[Sample]:
        try:
            with ExitStack() as stack:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                labels, offsets = self._labels(archive), by_task(self.offsets)
                inputs, names = sources(self.inputs), input_names(self.inputs)
                fixed = {task: key for task, key in labels.items() if task not in offsets}
                keys = [*inputs, *fixed.values()]
                columns = [self._rows(archive, key, stack) for key in keys]
                lengths = dict(zip(keys, (length for length, _ in columns), strict=True))
                if len(set(lengths.values())) > 1:
                    listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
                    raise UsageError(
                        f"{self.path}: the arrays differ in length: {listed} rows",
                        fix="save one label per sample",
                    )
                count = lengths[inputs[0]]
                if offsets and not labels:
                    raise UsageError(
                        f"{self.path}: 'offsets' is {self.offsets!r}, but there are no labels",
                        fix="set 'label' to the key of the rows that the offsets divide",
                    )
                ragged = {
                    task: self._ragged(archive, labels[task], key, count) for task, key in offsets.items()
                }
                tasks = (*fixed, *ragged)
                rows = [*(rows for _, rows in columns), *ragged.values()]
                for row in islice(zip(*rows, strict=True), self.limit):
                    answers = [_label(value) for value in row[len(inputs) :]]
                    yield Sample(row[: len(inputs)], _by_name(tasks, answers), names)
        except DAMAGED as error:
            raise UsageError(
                f"{self.path}: damaged, or not an .npz file: {error}",
                fix="save it again with numpy.savez(path, x=..., y=...)",
            ) from error

    @staticmethod
    def keys_of(path: Path) -> list[str]:
        """The array names of a file, without reading the arrays.

        Raises:
            UsageError: the file is not an ``.npz`` file.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        except DAMAGED as error:
            raise UsageError(
                f"{path}: not an .npz file: {error}", fix="save it with numpy.savez(path, x=..., y=...)"
            ) from error

    @staticmethod
    def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays of a file, without reading the arrays; raises as ``keys_of``."""
        try:
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if name.endswith(".npy")]
                return {name.removesuffix(".npy"): _shape(archive, name) for name in members}
        except DAMAGED as error:
            raise UsageError(
                f"{path}: not an .npz file: {error}", fix="save it with numpy.savez(path, x=..., y=...)"
            ) from error

    def digest(self) -> str:
        content = ["npz", file_digest(self.path), self.inputs, self.label, self.limit]
        return digest_of(content + ([self.offsets] if self.offsets else []))

    def _labels(self, archive: zipfile.ZipFile) -> dict[str, str]:
        """The keys of the labels by task, '' for the only one; empty for data without labels."""
        given = "label" in self.model_fields_set
        return by_task(self.label) if given or _member(archive, str(self.label)) else {}

    def _rows(self, archive: zipfile.ZipFile, key: str, stack: ExitStack) -> tuple[int, Iterator[Array]]:
        """Number of rows of one array, and the rows."""
        file = stack.enter_context(archive.open(self._present(archive, key)))
        shape, fortran_order, dtype = self._header(file, key)
        if fortran_order and len(shape) > 1:
            whole: Array = np.load(self.path, allow_pickle=False)[key]
            return shape[0], (row.astype(row.dtype.newbyteorder("="), copy=False) for row in whole)
        return shape[0], _read_rows(file, shape, dtype)

    def _ragged(self, archive: zipfile.ZipFile, key: str, offsets: str, count: int) -> Iterator[Array]:
        """The labels ``[k, ...]`` of different lengths, of ``count`` samples."""
        rows, limits = self._whole(archive, key), self._whole(archive, offsets)
        problem = ""
        if limits.ndim != 1 or limits.dtype.kind not in "iu":
            problem = f"has shape {list(limits.shape)} and dtype {limits.dtype}, not integers [n + 1]"
        elif len(limits) != count + 1:
            problem = f"has {len(limits)} entries, not {count + 1} for {count} samples"
        elif limits[0] != 0:
            problem = f"starts at {limits[0]}, not at 0"
        elif falls := [at for at, (start, end) in enumerate(pairwise(limits.tolist())) if end < start]:
            problem = f"decreases after entry {falls[0]}, from {limits[falls[0]]} to {limits[falls[0] + 1]}"
        elif limits[-1] != len(rows):
            problem = f"ends at {limits[-1]}, but {key!r} has {len(rows)} rows"
        if problem:
            raise UsageError(
                f"{self.path}: the array {offsets!r} {problem}",
                fix="save numpy.cumsum([0] + [len(label) for label in labels]), and the labels concatenated",
            )
        return (rows[start:end].copy() for start, end in pairwise(limits.tolist()))

    def _whole(self, archive: zipfile.ZipFile, key: str) -> Array:
        member = self._present(archive, key)
        with archive.open(member) as file:
            self._header(file, key)
        with archive.open(member) as file:
            array: Array = npy.read_array(file, allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _present(self, archive: zipfile.ZipFile, key: str) -> str:
        """The name of the member that holds an array."""
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key not in names:
            near = get_close_matches(key, names, 1)
            fix = f"did you mean {near[0]!r}? " if near else ""
            if key in by_task(self.label).values():
                fix += "Set 'label' to the key of the labels, or to null for data without labels"
            elif key in by_task(self.offsets).values():
                fix += "Set 'offsets' to the key of the offsets, or to null for labels of one shape"
            else:
                fix += "Set 'inputs' to the keys of the inputs"
            raise UsageError(
                f"{self.path}: no array {key!r}; the arrays are {', '.join(map(repr, names)) or 'none'}",
                fix=fix,
            )
        return _member(archive, key)

    def _header(self, file: IO[bytes], key: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"the array {key!r} is of the unknown format version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
        if dtype.kind not in "biuf":
            content = "pickled objects" if dtype.hasobject else f"values of dtype {dtype}"
            raise UsageError(
                f"{self.path}: the array {key!r} contains {content}, which are rejected",
                fix="save plain arrays of integers or floats, all rows of one shape"
                + ("; labels of different lengths are stored with 'offsets'" if dtype.hasobject else ""),
            )
        if not shape:
            raise UsageError(f"{self.path}: {key!r} is a single number, not one row per sample")
        return shape, fortran_order, dtype


def _shape(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    """The shape of an array, from its header."""
    with archive.open(member) as file:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape: tuple[int, ...] = read(file)[0]
        return shape


def _member(archive: zipfile.ZipFile, key: str) -> str:
    """The name of the member that holds an array; empty if there is none."""
    return next((name for name in (f"{key}.npy", key) if name in archive.namelist()), "")


def by_task(keys: str | Mapping[str, str] | None) -> dict[str, str]:
    """Keys by the name of the task; a single one is that of the only task, which has the name ''."""
    if keys is None:
        return {}
    return {"": keys} if isinstance(keys, str) else dict(keys)


def _label(value: Array) -> int | Array:
    whole = value.ndim == 0 and value.dtype.kind in "biu"
    return int(value[()]) if whole else value


def _by_name(tasks: tuple[str, ...], labels: Sequence[int | Array]) -> Label:
    if not tasks:
        return None
    return labels[0] if tasks == ("",) else dict(zip(tasks, labels, strict=True))


def _read_rows(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Iterator[Array]:
    """Rows of an array in C order, read in chunks of about ``CHUNK`` bytes."""
    row_bytes = dtype.itemsize * prod(shape[1:])
    at_once = max(1, CHUNK // max(1, row_bytes))
    for start in range(0, shape[0], at_once):
        rows = min(at_once, shape[0] - start)
        piece = file.read(rows * row_bytes)
        if len(piece) != rows * row_bytes:
            raise EOFError(f"it ends after {start} of {shape[0]} rows")
        block = np.frombuffer(piece, dtype).reshape(rows, *shape[1:])
        yield from block.astype(dtype.newbyteorder("="), copy=True)
