"""What a node of a cluster does with a task: check versions, run it in its own process, store the result.

The process is that of `LocalExecutor`, with its limits, and everything that it starts ends with it. Code of
the user is imported there only.
"""

import functools
import importlib.metadata
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import platformdirs
import psutil

from edgeopt.config.scratch import temporary_files
from edgeopt.devices.descendants import end
from edgeopt.devices.device import HOST, load_device
from edgeopt.devices.environments import HOME_VARIABLE
from edgeopt.errors import StoreError
from edgeopt.run.cluster.messages import Ended, Lacking, Line, Message, Refused, Request, Started
from edgeopt.run.cluster.portable import ONE_STORE, AbsentError, load
from edgeopt.run.executors.executor import Say, Task, TaskResult
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.measuring.probe import probe_device
from edgeopt.run.store import CACHE_VARIABLE, Store, full_disk_explained, is_url, open_store

POLL_SECONDS = 0.2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
"""Variables that decide the order of sums, and so the last bits of a result; engines set some of them."""

SECRETS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def serve(request: Request) -> Iterator[Message]:
    """Run a task; the last message says how it ended. If this is interrupted, its process is killed.

    The interrupt may come while the engine passes a message on, and this generator knows nothing of it. So
    the signal itself ends the process, and the next task begins with new ones.
    """
    differing = other_versions(request.versions)
    if differing:
        yield Refused(differing)
        return
    if _interrupted.is_set() or _executor().busy:
        _end_all()
    _interrupted.clear()
    executor = _executor()
    executor.limit_memory(request.memory_limit)
    for name in THREADS:
        os.environ.pop(name, None)
    os.environ.update(request.threads)
    arguments = (request.payload, request.key, request.store)
    task = Task(
        request.key, _run, arguments, request.worker, request.minutes, request.too_long, gpu=request.gpu
    )
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        executor.submit(task)
        yield Started()
        while not (ended := executor.wait(POLL_SECONDS)):
            for progress in executor.progress():
                yield Line(progress.seconds, progress.line)
    except BaseException:
        _end_all()
        raise
    yield _message(ended[0])


_interrupted = threading.Event()


def _on_interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the processes of the tasks, without a lock: what is interrupted here may hold it."""
    _interrupted.set()
    for process in multiprocessing.active_children():
        if process.pid is not None:
            end(process.pid)
    raise KeyboardInterrupt


def _end_all() -> None:
    """End the processes of this worker, and what they run."""
    executor = _executor()
    _executor.cache_clear()
    executor.close(at_once=True)


def other_versions(needed: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The packages of which this machine has another version, with both; '' if it has none."""
    found = {name: version_here(name) for name in needed}
    return {name: (needed[name], found[name]) for name in needed if found[name] != needed[name]}


def version_here(package: str) -> str:
    """The installed version of a package, or ''."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def threads_here() -> dict[str, str]:
    """The settings of this machine that decide the number of threads."""
    return {name: os.environ[name] for name in THREADS if name in os.environ}


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """This machine as an agent sees it, its free memory, and the versions of ``packages``; '' if missing."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        probe = probe_device(load_device(HOST), Path(folder))
    return {
        "probe": dict(probe),
        "free_memory_bytes": psutil.virtual_memory().available,
        "versions": {name: version_here(name) for name in packages},
    }


def _message(ended: TaskResult) -> Message:
    if isinstance(ended.value, Lacking):
        return ended.value
    return Ended(ended.failure, ended.seconds, ended.killed, ended.value, ended.lost)


@functools.cache
def _executor() -> LocalExecutor:
    """The processes of this worker, which stay open: the next task may need the same framework."""
    _prepare_worker()
    return LocalExecutor()


@functools.cache
def _prepare_worker() -> None:
    # Each process that is spawned would run the main module again, which is that of the engine.
    main = sys.modules["__main__"]
    vars(main).pop("__file__", None)
    main.__spec__ = None
    # Of the token that admits to the cluster, a stage needs to know nothing.
    for name in SECRETS:
        os.environ.pop(name, None)
    _temporary.__enter__()


_temporary = temporary_files()
"""The temporary files of this worker, which is killed at the end: those of the next one remove them."""


def _run(say: Say, payload: bytes, key: str, place: str) -> Lacking | str | None:
    """In a process of its own: run a task, and store its result under ``key``, or return it."""
    store = open_place(place)
    with full_disk_explained(store.root), store.scratch() as folder:
        try:
            function, arguments, entry = load(payload, store, folder)
        except AbsentError as error:
            return Lacking(error.absent, tuple(store.notes))
        if entry is None:
            return str(function(say, *arguments))
        # Another command may have needed it, or its way to the server may have been interrupted.
        there = store.get(key) is not None
        noted = len(store.notes)
        if there:
            store.share(key)
        else:
            started = time.monotonic()
            value = function(say, *arguments)
            store.put(key, folder, entry(value, folder, time.monotonic() - started))
            store.flush()
        if refused := store.notes[noted:]:
            raise StoreError("; ".join(refused), fix="run again once the store can be written")
    return None


def open_place(place: str) -> Store:
    """The store of the command on this machine.

    Raises:
        StoreError: the folder does not exist here.
    """
    if is_url(place):
        os.environ.setdefault(CACHE_VARIABLE, str(_cache()))
    elif not Path(place, "objects").is_dir():
        raise StoreError(
            f"{place}, the store of this command, does not exist on this machine",
            fix=ONE_STORE,
        )
    return open_store(place)


def _cache() -> Path:
    home = os.environ.get(HOME_VARIABLE)
    base = Path(os.path.expanduser(home)).absolute() if home else platformdirs.user_cache_path("edgeopt")
    return base / "store"
