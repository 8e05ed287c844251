"""A CSV table of files and labels."""

import csv
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt

from edgeopt.config.files import file_digest
from edgeopt.config.nearest import nearest
from edgeopt.errors import UsageError, shortened
from edgeopt.evaluation.datasets._sample_files import Color, read_array, read_image
from edgeopt.model import Array
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

MAX_DIGITS = 9
"""Most digits of a class index."""


class Csv(Dataset):
    """A CSV file with a header; each row contains the path of an image or ``.npy`` file, and its label.

    Images are read as uint8 ``[height, width, channels]``, arrays unchanged. A label is a class index, or
    one of ``classes``. Errors are reported with file and line.
    """

    requires: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str | None] = "data"

    path: ExistingPath = Field(description="the .csv file")
    file: str = Field("file", description="column of the file paths")
    label: str | None = Field("label", description="column of the labels; null for data without labels")
    root: ExistingPath | None = Field(
        None, description="base folder of the files; default: that of the table"
    )
    classes: tuple[str, ...] = Field((), description="class names, in the order of the model's outputs")
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="height and width of the images")
    color: Color = Field("rgb", description="three channels or one, for images")
    limit: int | None = Field(None, gt=0, description="read only the first rows")

    def samples(self) -> Iterator[Sample]:
        for where, file, label in self._rows():
            yield Sample((self._read(file, where),), label)

    def digest(self) -> str:
        rows = [[file_digest(self._present(file, where)), label] for where, file, label in self._rows()]
        return digest_of(["csv", rows, self.size, self.color])

    def _read(self, file: Path, where: str) -> Array:
        if self._present(file, where).suffix.lower() == ".npy":
            return read_array(file, where)
        return read_image(file, where, self.color, self.size)

    def _rows(self) -> Iterator[tuple[str, Path, int | None]]:
        """Location of each row for messages, its file, and its label."""
        root = self.root or self.path.parent
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as table:
                reader = csv.DictReader(table, strict=True)
                self._check_columns(reader.fieldnames or ())
                for row in islice(reader, self.limit):
                    where = f"{self.path}:{reader.line_num}"
                    name = (row[self.file] or "").strip()
                    if not name:
                        raise UsageError(f"{where}: no file name", fix=f"fill the column {self.file!r}")
                    yield where, root / name, self._index(row[self.label], where) if self.label else None
        except (csv.Error, UnicodeDecodeError, IsADirectoryError) as error:
            raise UsageError(f"{self.path}: not a CSV file in UTF-8: {error}") from error

    def _check_columns(self, columns: Sequence[str]) -> None:
        for option, column in (("file", self.file), ("label", self.label)):
            if column is not None and column not in columns:
                near = get_close_matches(column, columns, 1)
                raise UsageError(
                    f"{self.path}:1: no column {column!r}; the columns are {', '.join(map(repr, columns))}",
                    fix=(f"did you mean {near[0]!r}? " if near else "") + f"Set the option {option!r}",
                )

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
