"""The journal of a search: one line per finished trial, so that a killed search goes on where it was.

The first line identifies the search. Proposals are a function of the trials before them, so nothing else is
stored, and several processes may work on one search: each claims trials by locks. The locks are the kernel's:
they are released when a process ends, however it ends.
"""

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgeopt.config.files import writing
from edgeopt.errors import UsageError
from edgeopt.results.search import Tried

NAME, CLAIMS = "journal.jsonl", "claims"
ELSEWHERE = "choose another folder with --out DIR"
PROCESSES = 64
"""Most processes that share the trials of a search evenly."""


class Journal:
    """The journal in ``folder``, which several processes may read and write; a context manager.

    Raises:
        UsageError: the folder is not writable, or the journal is of another search.
    """

    def __init__(self, folder: Path, search: str, title: str) -> None:
        """``search``: digest of what the trials depend on; ``title``: its name for messages."""
        self.path = folder / NAME
        self.trials: list[Tried] = []
        """Those that have been read, by number."""
        self._search = {"search": search, "title": title}
        self._present = ExitStack()

    def __enter__(self) -> Self:
        with writing(self.path, ELSEWHERE):
            (self.path.parent / CLAIMS).mkdir(parents=True, exist_ok=True)
            self.path.touch()
        self.refresh()
        places = (lock(self.path.parent, f"process-{number}") for number in range(PROCESSES))
        self._present.enter_context(next((place for place in places if place is not None), ExitStack()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._present.close()

    @property
    def seconds(self) -> float:
        """Time spent on the trials."""
        return sum(each.seconds for each in self.trials)

    def refresh(self) -> None:
        """Read the trials that other processes have added."""
        with self._locked() as file:
            self._read(file)

    def add(self, tried: Tried) -> None:
        """Append a finished trial, unless it is there; it is on the disk when this returns."""
        with self._locked() as file:
            self._read(file)
            if tried.number not in {each.number for each in self.trials}:
                self._append(file, tried.model_dump(mode="json", exclude={"place"}))
                self.trials = sorted([*self.trials, tried], key=lambda each: each.number)

    @contextmanager
    def claimed(self, numbers: Collection[int]) -> Iterator[list[int]]:
        """This process's part of some trials: none if others try all of them. Held until the context ends."""
        folder = self.path.parent
        with ExitStack() as held:
            part = -(-len(numbers) // self._processes())
            mine: list[int] = []
            for number in sorted(numbers):
                if len(mine) < part and (own := lock(folder, f"trial-{number}")) is not None:
                    held.enter_context(own)
                    mine.append(number)
            self.refresh()  # one of them may have been finished before it was claimed
            done = {each.number for each in self.trials}
            yield [number for number in mine if number not in done]

    def _processes(self) -> int:
        """How many processes work on this search, this one included."""
        folder = self.path.parent
        taken = 0
        for number in range(PROCESSES):
            if not (folder / CLAIMS / f"process-{number}").exists():
                break
            free = lock(folder, f"process-{number}")
            taken += free is None
            if free is not None:
                free.close()
        return max(1, taken)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        with writing(self.path, ELSEWHERE), self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _append(self, file: IO[bytes], record: Any) -> None:
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        lines = file.read().split(b"\n")
        complete, rest = lines[:-1], lines[-1]
        if rest:  # a process was killed in the middle of a line
            file.truncate(file.tell() - len(rest))
        if not complete:
            self._append(file, self._search)
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
        self.trials = sorted(trials, key=lambda each: each.number)


def lock(folder: Path, name: str) -> ExitStack | None:
    """A lock in the folder of a search, to be closed; None if another process has it."""
    file = _lock_file(folder, name)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    held = ExitStack()
    held.enter_context(file)
    return held


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process writes the results of a search."""
    with _lock_file(folder, "results") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_file(folder: Path, name: str) -> IO[bytes]:
    # The file stays: if it were removed, a third process could lock a new file of the same name.
    with writing(folder, ELSEWHERE):
        (folder / CLAIMS).mkdir(parents=True, exist_ok=True)
        return (folder / CLAIMS / name).open("ab")
