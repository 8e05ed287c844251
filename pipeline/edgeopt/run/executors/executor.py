"""The interface of executors, which run tasks in worker processes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self, TypeAlias

from edgeopt.plugin import Worker

Say: TypeAlias = Callable[[str], None]
"""Reports progress, one line per call."""


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


class TaskResult(NamedTuple):
    """The result of a finished task: its return value, or the reason of its failure."""

    key: str
    value: Any
    failure: str
    """Empty on success; otherwise one line, possibly followed by the end of the task's log."""
    seconds: float
    """Run time, without the time in the queue."""


class Progress(NamedTuple):
    """The last progress line of a running task since the previous query."""

    key: str
    seconds: float
    line: str


class Executor(ABC):
    """Runs tasks in isolation: a crash, hang or memory leak of a task fails that task only."""

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
    def close(self, *, at_once: bool) -> None:
        """Shut all workers down: after their current tasks, or immediately with ``at_once``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(at_once=kind is not None)
