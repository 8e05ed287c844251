"""Worker processes that stay between the commands that tests run in their own process.

A worker imports its framework once, which takes 5 s for TensorFlow and 10 s for PyTorch with ExecuTorch.
A module asks for them by ``pytest.mark.usefixtures("kept_workers")``, or ``"own_workers"`` if its models are
built by code of the user: a worker keeps the first module of each name. Tests of limits, of stages that end
their process, of signals, or of environment variables that stages read are for new workers.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

from edgeopt.run.executors.choice import using
from edgeopt.run.executors.executor import Task
from edgeopt.run.executors.local import LocalExecutor


class Workers:
    """An executor, which is replaced if a command leaves tasks running; a context manager."""

    def __init__(self) -> None:
        self._executor: LocalExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The commands of the block use the workers."""
        if self._executor is None:
            self._executor = _Executor()
        with using(self._executor):
            yield
        if self._executor.busy:
            self._end()

    def _end(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.close(at_once=True)


class _Executor(LocalExecutor):
    """Gives each task the folders that a new worker has: those of the command."""

    def submit(self, task: Task) -> None:
        there = partial(_run_there, os.getcwd(), tempfile.gettempdir(), task.function)
        super().submit(task._replace(function=there))


def _run_there(folder: str, temporary: str, function: Callable[..., Any], *arguments: Any) -> Any:
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    return function(*arguments)
