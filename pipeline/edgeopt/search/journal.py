"""The journal of a search: one line per finished trial, so that a killed search goes on where it was.

The first line identifies the search. Proposals are a function of the trials before them, so nothing else is
stored. The lock is the kernel's: it is released when the process ends, however it ends.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgeopt.config.files import writing
from edgeopt.errors import UsageError
from edgeopt.results.search import Tried

NAME = "journal.jsonl"
ELSEWHERE = "choose another folder with --out DIR"


class Journal:
    """The journal in ``folder``; a context manager that locks it.

    Raises:
        UsageError: the folder is not writable, another process searches there, or the journal is of another
            search.
    """

    def __init__(self, folder: Path, search: str, title: str) -> None:
        """``search``: digest of what the trials depend on; ``title``: its name for messages."""
        self.path = folder / NAME
        self.trials: list[Tried] = []
        self._search = {"search": search, "title": title}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with writing(self.path, ELSEWHERE):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(
                f"another process searches in {self.path.parent}", fix=f"wait for its end, or {ELSEWHERE}"
            ) from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    @property
    def seconds(self) -> float:
        """Time spent on the trials."""
        return sum(each.seconds for each in self.trials)

    def add(self, tried: Tried) -> None:
        """Append a finished trial; it is on the disk when this returns."""
        self.trials.append(tried)
        self._append(tried.model_dump(mode="json", exclude={"place"}))

    def _append(self, record: Any) -> None:
        assert self._file is not None
        with writing(self.path, ELSEWHERE):
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        complete, rest = lines[:-1], lines[-1]
        if rest:  # the process was killed in the middle of a line
            self._file.truncate(self._file.tell() - len(rest))
        if not complete:
            self._append(self._search)
            return
        try:
            header, *records = map(json.loads, complete)
            trials = [Tried.model_validate(record) for record in records]
            same, title = header["search"] == self._search["search"], header["title"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self.path} is not the journal of a search", fix=ELSEWHERE) from error
        if not same:
            raise UsageError(
                f"{self.path} is the journal of another search: of {title}, or with another model, "
                "other data, limits, values or versions",
                fix=f"{ELSEWHERE}, or remove the file to begin again",
            )
        self.trials = trials
