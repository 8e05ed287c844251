"""The interface of executors, which run tasks in worker processes, here or on other machines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from edgeopt.config.references import Code
from edgeopt.plugin import Worker

Say: TypeAlias = Callable[[str], None]
"""Reports progress, one line per call."""


class Board(NamedTuple):
    """A device that a task measures on, wherever it is attached."""

    device: str
    node: str = ""
    """The machine of the executor that its file names; '' if any that offers it will do."""
    alone: bool = False
    """Whether the device is that machine itself, so that nothing else may run there meanwhile."""


class Elsewhere(NamedTuple):
    """What another machine needs to run a task, and to store its result where all machines find it."""

    title: str
    """What the task is, for messages."""
    folder: Path
    """The scratch folder of the store that the task writes; it is among the arguments."""
    entry: Callable[[Any, Path, float], dict[str, Any]] | None
    """The metadata of the entry, from the value of the task, the folder and the seconds.

    Pickled by name. A `StageError` that it raises is the failure of the task. None: nothing is stored, and
    the value, a short text, is the result.
    """
    versions: Mapping[str, str]
    """Packages that decide the result, with the versions that they have here."""
    code: Code | None = None
    """Code of the user that models refer to by its folder."""
    board: Board | None = None
    """The device that it needs."""


class Task(NamedTuple):
    """A call ``function(say, *args)``, run in the worker process of a framework."""

    key: str
    """Unique among the running tasks."""
    function: Callable[..., Any]
    """Pickled by name: a module-level function. The arguments are pickled, too."""
    args: tuple[Any, ...]
    worker: Worker
    """The framework: tasks of different frameworks never share a process."""
    minutes: float
    """Time limit."""
    too_long: str
    """The fix shown if the time limit is exceeded."""
    elsewhere: Elsewhere | None = None
    """Needed by executors that run tasks on other machines."""
    gpu: bool = False
    """Whether it computes on a GPU, if its machine has one; all other tasks see none."""


class TaskResult(NamedTuple):
    """The result of a finished task: its return value, or the reason of its failure."""

    key: str
    value: Any
    failure: str
    """Empty on success; otherwise one line, possibly followed by the end of the task's log."""
    seconds: float
    """Run time, without the time in the queue."""
    stored: bool = False
    """Whether the result is in the store already, under the key of the task; it has no value then."""
    where: str = ""
    """The machine that ran it, if the executor has several."""
    killed: bool = False
    """Whether something other than the executor killed its process, such as a kernel without memory."""
    lost: bool = False
    """Whether its machine, the store or another process is the reason: run again, the task may succeed."""


class Progress(NamedTuple):
    """The last progress line of a running task since the previous query."""

    key: str
    seconds: float
    line: str
    at_once: bool = False
    """Whether the line is rare, and worth showing however young the task is."""


class Machine(NamedTuple):
    """A machine that an executor runs tasks on."""

    name: str
    slots: float
    """Tasks that it runs at a time."""
    about: Mapping[str, Any]
    """Its ``probe``, ``free_memory_bytes`` and ``versions`` of packages; empty if it does not answer."""
    devices: tuple[str, ...] = ()
    """Devices that it offers to all others."""
    gpus: int = 0
    """GPUs that it trains on."""


class Place(NamedTuple):
    """What all tasks of a command have in common."""

    store: str
    """An absolute folder, or a URL."""
    say: Callable[[str], None]
    """Receives one line about each event that concerns no single task."""


class Executor(ABC):
    """Runs tasks in isolation: a crash, hang or memory leak of a task fails that task only."""

    @classmethod
    @abstractmethod
    def connect(cls, address: str, place: Place) -> "Executor":
        """An executor for a whole command; ``address`` is what follows its name, often empty.

        Raises:
            UsageError: the address is none of this executor.
            MissingPackageError: it needs a package that is not installed.
        """

    @abstractmethod
    def limit_memory(self, limit: int | None) -> None:
        """Limit the bytes that a later task may use; None: a share of the memory of its machine."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Schedule a task."""

    @abstractmethod
    def wait(self, seconds: float) -> list[TaskResult]:
        """Tasks finished since the last call; waits up to ``seconds`` for at least one."""

    @abstractmethod
    def progress(self) -> Iterator[Progress]:
        """New progress of running tasks."""

    @abstractmethod
    def cancel(self, key: str) -> None:
        """Abort a task, which then fails."""

    @abstractmethod
    def machines(self, packages: Sequence[str]) -> Sequence[Machine]:
        """All machines, with the versions of ``packages`` there, '' if missing."""

    @abstractmethod
    def capacity(self) -> int:
        """Tasks of one framework that run at a time now, on all machines together; at least 1."""

    @abstractmethod
    def holder(self, board: Board) -> Callable[[Task], TaskResult] | None:
        """What runs a task where its device is, and waits for it; None: the device is measured from here.

        Several threads may call it.
        """

    @abstractmethod
    def close(self, *, at_once: bool) -> None:
        """Shut all workers down: after their current tasks, or immediately with ``at_once``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(at_once=kind is not None)
