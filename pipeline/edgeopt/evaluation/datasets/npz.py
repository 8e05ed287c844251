"""Samples from the arrays of an ``.npz`` file."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from difflib import get_close_matches
from itertools import islice, pairwise
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from pydantic import Field

from edgeopt.config.files import CHUNK, file_digest
from edgeopt.errors import UsageError
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

DAMAGED = (OSError, *MALFORMED)


class Npz(Dataset):
    """Arrays saved with ``numpy.savez`` or ``savez_compressed``, with samples along the first axis.

    The archive is read in chunks, so the file may exceed the memory. (In an array in Fortran order rows are
    not contiguous; it is loaded at once.) Pickled objects are rejected. Integer labels of shape ``[n]`` are
    class indices; others are passed on as arrays, so for an autoencoder set ``label: x``, its own input.

    Labels of different lengths, such as boxes or transcripts, are stored one after the other, with
    ``offsets``: the label of sample i is ``y[offsets[i]:offsets[i + 1]]``, which may be empty.
    """

    path: ExistingPath = Field(description="the .npz file")
    inputs: tuple[str, ...] = Field(
        ("x",), min_length=1, description="keys of the inputs, in the model's order"
    )
    label: str | None = Field(
        "y", description="key of the labels; unless given, data without 'y' have none; null: none"
    )
    offsets: str | None = Field(
        None, description="key of the offsets [n + 1] of labels of different lengths into the rows of 'label'"
    )
    limit: int | None = Field(None, gt=0, description="read only the first samples")

    def samples(self) -> Iterator[Sample]:
        try:
            with ExitStack() as stack:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                label = self._label(archive)
                keys = self.inputs if label is None or self.offsets else (*self.inputs, label)
                columns = [self._rows(archive, key, stack) for key in keys]
                lengths = dict(zip(keys, (length for length, _ in columns), strict=True))
                if len(set(lengths.values())) > 1:
                    listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
                    raise UsageError(
                        f"{self.path}: the arrays differ in length: {listed} rows",
                        fix="save one label per sample",
                    )
                rows = [rows for _, rows in columns]
                if self.offsets:
                    rows.append(self._ragged(archive, label, self.offsets, columns[0][0]))
                for row in islice(zip(*rows, strict=True), self.limit):
                    yield _sample(row, labelled=label is not None)
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

    def digest(self) -> str:
        content = ["npz", file_digest(self.path), self.inputs, self.label, self.limit]
        return digest_of(content + ([self.offsets] if self.offsets else []))

    def _label(self, archive: zipfile.ZipFile) -> str | None:
        """The key of the labels; None for data without labels."""
        given = "label" in self.model_fields_set
        return self.label if given or _member(archive, self.label or "") else None

    def _rows(self, archive: zipfile.ZipFile, key: str, stack: ExitStack) -> tuple[int, Iterator[Array]]:
        """Number of rows of one array, and the rows."""
        file = stack.enter_context(archive.open(self._present(archive, key)))
        shape, fortran_order, dtype = self._header(file, key)
        if fortran_order and len(shape) > 1:
            whole: Array = np.load(self.path, allow_pickle=False)[key]
            return shape[0], (row.astype(row.dtype.newbyteorder("="), copy=False) for row in whole)
        return shape[0], _read_rows(file, shape, dtype)

    def _ragged(self, archive: zipfile.ZipFile, key: str | None, offsets: str, count: int) -> Iterator[Array]:
        """The labels ``[k, ...]`` of different lengths, of ``count`` samples."""
        if key is None:
            raise UsageError(
                f"{self.path}: 'offsets' is {offsets!r}, but there are no labels",
                fix="set 'label' to the key of the rows that the offsets divide",
            )
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
            if key == self.label:
                fix += "Set 'label' to the key of the labels, or to null for data without labels"
            elif key == self.offsets:
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


def _member(archive: zipfile.ZipFile, key: str) -> str:
    """The name of the member that holds an array; empty if there is none."""
    return next((name for name in (f"{key}.npy", key) if name in archive.namelist()), "")


def _sample(row: tuple[Array, ...], *, labelled: bool) -> Sample:
    if not labelled:
        return Sample(row)
    label = row[-1]
    whole = label.ndim == 0 and label.dtype.kind in "biu"
    return Sample(row[:-1], int(label[()]) if whole else label)


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
