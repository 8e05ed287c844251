"""A CSV table of files and labels."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from edgeopt.config.files import file_digest
from edgeopt.config.nearest import nearest
from edgeopt.errors import UsageError, shortened
from edgeopt.evaluation.datasets._named_inputs import input_names, or_by_name, sources
from edgeopt.evaluation.datasets._sample_files import IMAGES, Color, read_array, read_image
from edgeopt.model import Array
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

MAX_DIGITS = 9
"""Most digits of a class index."""
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # of 64 bits


class Csv(Dataset):
    """A CSV file with a header; each row contains the path of an image or ``.npy`` file, and its label.

    Images are read as uint8 ``[height, width, channels]``, arrays unchanged. A label is a class index, or
    one of ``classes``; with ``labels``, the numbers of several columns, float32 ``[columns]``; with
    ``sequence``, the integers of one column, int64 ``[k]``. Errors are reported with file and line.
    """

    requires: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str | None] = "data"

    path: ExistingPath = Field(description="the .csv file")
    file: Annotated[str | dict[str, str], or_by_name(str)] = Field(
        "file",
        description="column of the file paths; for a model with several inputs, a column by the name of each",
    )
    label: str | None = Field("label", description="column of the labels; null for data without labels")
    labels: tuple[str, ...] = Field(
        (), description="columns of numbers that are the label, instead of 'label'"
    )
    sequence: str | None = Field(
        None, description="column of integers separated by spaces that are the label, instead of 'label'"
    )
    root: ExistingPath | None = Field(
        None, description="base folder of the files; default: that of the table"
    )
    classes: tuple[str, ...] = Field((), description="class names, in the order of the model's outputs")
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="height and width of the images")
    color: Color = Field("rgb", description="three channels or one, for images")
    limit: int | None = Field(None, gt=0, description="read only the first rows")

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_label(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [name for name in ("label", "labels", "sequence") if data.get(name)]
        if len(given) > 1:
            raise ValueError(f"set only one of {', '.join(given)}")
        return data if given in ([], ["label"]) else {**data, "label": None}

    def samples(self) -> Iterator[Sample]:
        names = input_names(self.file)
        for where, files, label in self._rows():
            yield Sample(tuple(self._read(file, where) for file in files), label, names)

    def digest(self) -> str:
        rows = [
            [
                *(file_digest(self._present(file, where)) for file in files),
                label.tolist() if isinstance(label, np.ndarray) else label,
            ]
            for where, files, label in self._rows()
        ]
        has_images = any(file.suffix.lower() != ".npy" for _, files, _ in self._rows() for file in files)
        content = ["csv", *([IMAGES] if has_images else []), rows, self.size, self.color]
        return digest_of([*content, *filter(None, [input_names(self.file)])])

    def _read(self, file: Path, where: str) -> Array:
        if self._present(file, where).suffix.lower() == ".npy":
            return read_array(file, where)
        return read_image(file, where, self.color, self.size)

    def _rows(self) -> Iterator[tuple[str, list[Path], int | Array | None]]:
        """Location of each row for messages, the files of its inputs, and its label."""
        root, columns = self.root or self.path.parent, sources(self.file)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as table:
                reader = csv.DictReader(table, strict=True)
                self._check_columns(reader.fieldnames or ())
                for row in islice(reader, self.limit):
                    where = f"{self.path}:{reader.line_num}"
                    files = [root / _file_name(row[column], column, where) for column in columns]
                    yield where, files, self._label(row, where)
        except (csv.Error, UnicodeDecodeError, IsADirectoryError) as error:
            raise UsageError(f"{self.path}: not a CSV file in UTF-8: {error}") from error

    def _check_columns(self, columns: Sequence[str]) -> None:
        files = [("file", name) for name in sources(self.file)]
        options = [*files, ("label", self.label), ("sequence", self.sequence)]
        for option, column in [*options, *(("labels", name) for name in self.labels)]:
            if column is not None and column not in columns:
                near = get_close_matches(column, columns, 1)
                raise UsageError(
                    f"{self.path}:1: no column {column!r}; the columns are {', '.join(map(repr, columns))}",
                    fix=(f"did you mean {near[0]!r}? " if near else "") + f"Set the option {option!r}",
                )

    def _label(self, row: dict[str, str | None], where: str) -> int | Array | None:
        if self.labels:
            return np.array([_number(row[column], column, where) for column in self.labels], np.float32)
        if self.sequence is not None:
            return _integers(row[self.sequence], self.sequence, where)
        return self._index(row[self.label], where) if self.label else None

    def _index(self, text: str | None, where: str) -> int:
        text = (text or "").strip()
        if text in self.classes:
            return self.classes.index(text)
        if self.classes:
            near = get_close_matches(text, self.classes, 1)
            raise UsageError(
                f"{where}: the label {text!r} is not one of 'classes'",
                fix=f"did you mean {near[0]!r}?" if near else f"add it to them{nearest(text, self.classes)}",
            )
        if not text.isdecimal() or len(text) > MAX_DIGITS:
            raise UsageError(
                f"{where}: the label {shortened(text, 60)!r} is not an integer from 0 to 999,999,999",
                fix="list the names in 'classes'",
            )
        return int(text)

    @staticmethod
    def _present(file: Path, where: str) -> Path:
        if not os.path.isfile(file):  # unlike Path.is_file, also for a name that is too long
            raise UsageError(
                f"{where}: no such file: {shortened(str(file), 300)}",
                fix="set 'root' to the folder of the files",
            )
        return file


def _file_name(text: str | None, column: str, where: str) -> str:
    name = (text or "").strip()
    if not name:
        raise UsageError(f"{where}: no file name", fix=f"fill the column {column!r}")
    return name


def _number(text: str | None, column: str, where: str) -> np.float32:
    try:
        with np.errstate(over="ignore"):
            number = np.float32((text or "").strip())
    except ValueError:
        number = np.float32(np.nan)
    if not np.isfinite(number):
        raise UsageError(
            f"{where}: {shortened(text or '', 60)!r} in the column {column!r} is not a finite number",
            fix="correct the value, or remove the row",
        )
    return number


def _integers(text: str | None, column: str, where: str) -> NDArray[np.int64]:
    if text is None:
        raise UsageError(f"{where}: no column {column!r} in this row", fix="fill it; an empty field is valid")
    for word in text.split():
        if not INTEGER.fullmatch(word):
            raise UsageError(
                f"{where}: {shortened(word, 60)!r} in the column {column!r} is not an integer",
                fix="separate integers by spaces",
            )
    return np.array([int(word) for word in text.split()], np.int64)
