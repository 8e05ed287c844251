"""What carries tasks out: processes of this machine, or another engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self, TypeAlias

from edgeopt.plugin import Worker

Say: TypeAlias = Callable[[str], None]
"""Takes one line about what a task is doing."""


class Task(NamedTuple):
    """A function to be called as ``function(say, *args)``, in a process of its own kind of framework."""

    key: str
    """Names the task; no two that run at the same time have the same."""
    function: Callable[..., Any]
    """Found by its name in another process, as its arguments are pickled."""
    args: tuple[Any, ...]
    worker: Worker
    """Tasks of two frameworks never meet in one process."""
    minutes: float
    """After which it is stopped."""
    too_long: str
    """What to do about a task that takes longer."""


class Ended(NamedTuple):
    """A task that is over: what it returned, or why it failed."""

    key: str
    value: Any
    failure: str
    """Empty for a task that returned; otherwise one line, and the task's last words below it."""
    seconds: float
    """From its start; waiting does not count."""


class Progress(NamedTuple):
    """The last line that a running task said since it was asked before."""

    key: str
    seconds: float
    line: str


class Executor(ABC):
    """Runs tasks. Whatever a task does to its process costs that task and nothing else."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Run a task as soon as there is room for it."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """Tasks that ended since the last call; waits until there is one, or the time is over."""

    @abstractmethod
    def progress(self) -> Iterator[Progress]:
        """What running tasks have said meanwhile."""

    @abstractmethod
    def cancel(self, key: str) -> None:
        """Stop a task where it is; it ends as a failure."""

    @abstractmethod
    def close(self, *, at_once: bool) -> None:
        """Let the workers finish what they do, or stop them where they are; nothing runs on afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(at_once=kind is not None)
