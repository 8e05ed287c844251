"""Where the stages of a command run: by an executor that is chosen by name, ``local`` by default.

``executors/<name>.py`` with a class ``<Name>Executor`` is an executor: nothing else registers it.
"""

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from edgeopt.config.nearest import nearest
from edgeopt.config.registry import class_name
from edgeopt.errors import DeviceError, UsageError
from edgeopt.results import Event
from edgeopt.run.executors.executor import Board, Executor, Place, Task, TaskResult
from edgeopt.run.executors.local import LocalExecutor

VARIABLE = "EDGEOPT_ON"
LOCAL = "local"

_open: ContextVar[Executor | None] = ContextVar("executor", default=None)
"""The executor of the running command; None: each build starts one on this machine."""


def known() -> tuple[str, ...]:
    """The names of all executors."""
    package = importlib.import_module(__package__ or "")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(name for name in modules if _class_of(name) is not None)


@contextmanager
def executing(on: str | None, place: str, watch: Callable[[Event], None]) -> Iterator[None]:
    """Run the stages of the block by the executor ``on``; default: ``EDGEOPT_ON``, or this machine.

    Inside a block of another call, its executor stays: a search ends with ordinary runs.

    Args:
        on: ``NAME`` or ``NAME:ADDRESS``.
        place: the store, which other machines open too: an absolute folder or a URL.
        watch: receives an event for what concerns no single stage, such as a lost machine.

    Raises:
        UsageError: there is no such executor, or its address is none.
        MissingPackageError: it needs a package that is not installed.
    """
    name, _, address = (on or os.environ.get(VARIABLE) or LOCAL).partition(":")
    kind = _class_of(name)
    if kind is None:
        raise UsageError(f"no executor {name!r}{nearest(name, known())}", fix=f"one of {', '.join(known())}")
    if _open.get() is not None or (kind is LocalExecutor and not address):
        yield
        return

    def say(line: str) -> None:
        watch(Event(branch="", step="", status="note", message=line))

    with kind.connect(address, Place(place, say)) as executor, using(executor):
        yield


@contextmanager
def using(executor: Executor) -> Iterator[None]:
    """Run the stages of every command of the block by an executor that is open, and stays open.

    A program that runs several commands so starts its worker processes once, and they import the frameworks
    once. They also keep the current folder, the environment variables and the modules of the user that their
    first tasks gave them.
    """
    token = _open.set(executor)
    try:
        yield
    finally:
        _open.reset(token)


def executor_for(memory_limit: int | None) -> AbstractContextManager[Executor]:
    """The executor of the running command, which stays open, or one on this machine.

    Args:
        memory_limit: bytes that a task may use; default: a share of the memory of the machine that runs it.
    """
    executor = _open.get()
    if executor is None:
        return LocalExecutor(memory_limit)
    executor.limit_memory(memory_limit)
    return nullcontext(executor)


def holder_of(board: Board) -> Callable[[Task], TaskResult] | None:
    """What runs the jobs of a device at the machine that holds it; None: this one reaches it.

    Raises:
        DeviceError: a node of a cluster holds it, and the running command uses none.
    """
    executor = _open.get()
    holder = executor.holder(board) if executor is not None else None
    if holder is None and board.node:
        raise DeviceError(
            f"device {board.device} is at the node {board.node} of a cluster",
            fix="measure on it with --on ray:HOST:PORT",
        )
    return holder


def _class_of(name: str) -> type[Executor] | None:
    module = f"{__package__}.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        return None
    kind = getattr(importlib.import_module(module), f"{class_name(name)}Executor", None)
    return kind if isinstance(kind, type) and issubclass(kind, Executor) else None
