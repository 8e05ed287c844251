"""Worker processes on this machine: one per framework, reused for all its tasks."""

import concurrent.futures
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import psutil

from edgeopt.config.text import log_tail, reason_of
from edgeopt.config.units import show_bytes
from edgeopt.devices.descendants import end, family, memory, mute_resource_tracker
from edgeopt.errors import UsageError
from edgeopt.plugin import Worker
from edgeopt.run.executors import gpus
from edgeopt.run.executors.executor import Board, Executor, Machine, Place, Progress, Task, TaskResult
from edgeopt.run.executors.worker import prepare, run_task

if TYPE_CHECKING:
    from pebble import ProcessPool

MEMORY_SHARE = 0.8
"""Default memory limit of a task, as a fraction of this machine's memory."""
POLL_SECONDS = 0.2
EXIT_GRACE_SECONDS = 2.0
"""Time for the result of an exited process to arrive."""


@dataclass
class _Running:
    """A submitted task; ``stem`` is the path of its worker's files without suffix: pid, log and progress."""

    task: Task
    stem: Path
    stop_reason: str = ""
    """Why the executor stopped it."""
    lines_seen: int = 0
    gone_since: float = 0.0
    """When its process was first found missing; monotonic clock."""
    family: set[psutil.Process] = field(default_factory=set)
    """All processes that were seen below it."""

    @property
    def started(self) -> bool:
        return self._started() is not None

    @property
    def seconds(self) -> float:
        """Run time."""
        started = self._started()
        return 0.0 if started is None else time.monotonic() - started[1]

    def process(self) -> psutil.Process | None:
        """Its worker process; None before the task starts or after the process exits."""
        started = self._started()
        try:
            return None if started is None else psutil.Process(started[0])
        except psutil.Error:
            return None

    def _started(self) -> tuple[int, float] | None:
        try:
            process, moment = self.stem.with_suffix(".pid").read_text().split()
        except (OSError, ValueError):  # not yet written, or incomplete
            return None
        return int(process), float(moment)

    def end(self) -> None:
        """Kill its worker, and everything that it started."""
        if (started := self._started()) is not None:
            end(started[0], self.family)


class LocalExecutor(Executor):
    """Runs tasks of different frameworks in parallel, and tasks of the same framework sequentially."""

    def __init__(self, memory_limit: int | None = None) -> None:
        """``memory_limit``: bytes that a task may use, including its child processes."""
        self.limit_memory(memory_limit)
        self._pools: dict[tuple[Worker, str | None], ProcessPool] = {}
        """By framework, and the GPUs that it sees: a process sees others only if it starts again."""
        self._running: dict[concurrent.futures.Future[Any], _Running] = {}
        self._count = 0
        self._folder = Path(tempfile.mkdtemp(prefix="edgeopt-"))

    @classmethod
    def connect(cls, address: str, place: Place) -> Self:
        if address:
            raise UsageError(f"local:{address}: this machine has no address", fix="--on local")
        return cls()

    def limit_memory(self, limit: int | None) -> None:
        self.memory_limit = limit or int(psutil.virtual_memory().total * MEMORY_SHARE)

    @property
    def busy(self) -> bool:
        """Whether a task has not ended, or its end was not asked for."""
        return bool(self._running)

    def submit(self, task: Task) -> None:
        self._count += 1
        running = _Running(task, self._folder / f"task{self._count}")
        # pebble's own timeout is not used: it relies on the wall clock, which may be adjusted.
        future = self._pool(task.worker, gpus.visible(gpu=task.gpu)).schedule(
            run_task, args=(running.stem, task.function, task.args)
        )
        self._running[future] = running

    def wait(self, seconds: float) -> list[TaskResult]:
        deadline = time.monotonic() + seconds
        while self._running:
            left = max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))
            done, _ = concurrent.futures.wait(
                self._running, timeout=left, return_when=concurrent.futures.FIRST_COMPLETED
            )
            if done:
                return [self._result(future, self._running.pop(future)) for future in done]
            self._enforce_limits()
            if time.monotonic() >= deadline:
                break
        return []

    def progress(self) -> Iterator[Progress]:
        for running in self._running.values():
            try:
                lines = running.stem.with_suffix(".progress").read_text("utf-8").splitlines()
            except OSError:
                continue
            if len(lines) > running.lines_seen:
                running.lines_seen = len(lines)
                yield Progress(running.task.key, running.seconds, lines[-1])

    def cancel(self, key: str) -> None:
        for future, running in self._running.items():
            if running.task.key == key:
                running.stop_reason = "it was cancelled"
                future.cancel()

    def machines(self, packages: Sequence[str]) -> Sequence[Machine]:
        from edgeopt.run.cluster.node import describe  # here: it runs tasks by this executor

        about = describe(packages)
        return [Machine(os.uname().nodename, len(get_args(Worker)), about, gpus=gpus.count())]

    def capacity(self) -> int:
        return 1

    def holder(self, board: Board) -> None:
        return None

    def close(self, *, at_once: bool) -> None:
        for pool in self._pools.values():
            if at_once:
                pool.stop()
            else:
                pool.close()
        if at_once:
            for running in self._running.values():
                running.end()
        for pool in self._pools.values():
            pool.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _pool(self, worker: Worker, seen: str | None) -> "ProcessPool":
        pool = self._pools.get((worker, seen))
        if pool is not None and not pool.active:  # broken: its worker died between two tasks
            del self._pools[worker, seen]
            pool.stop()
            pool.join()
        if (worker, seen) not in self._pools:
            from pebble import ProcessPool  # here: a run with everything in the store needs none

            mute_resource_tracker()
            self._pools[worker, seen] = ProcessPool(
                max_workers=1,
                # Not fork: the threads and locks of frameworks do not survive it.
                context=multiprocessing.get_context("spawn"),
                initializer=prepare,
                initargs=(worker, os.getpid(), seen),
            )
        return self._pools[worker, seen]

    def _enforce_limits(self) -> None:
        """Kill tasks over the time or memory limit, with their child processes."""
        for future, running in self._running.items():
            process = running.process()
            children: list[psutil.Process] = []
            if process is not None:
                children = family(process)
                running.family.update(children)
            elif running.started:
                # pebble does not treat exit code 0 as a failure, and would wait forever.
                running.gone_since = running.gone_since or time.monotonic()
                if time.monotonic() - running.gone_since > EXIT_GRACE_SECONDS and not future.done():
                    running.stop_reason = "its process died with exit code 0"
                    future.cancel()
            if process is None or running.stop_reason:
                continue
            used = memory([process, *children])
            if used > self.memory_limit:
                running.stop_reason = (
                    f"stopped at {show_bytes(used)} of memory, over the limit of "
                    f"{show_bytes(self.memory_limit)} (limits.stage_memory)"
                )
            elif running.seconds > running.task.minutes * 60:
                running.stop_reason = (
                    f"stopped after {running.task.minutes:g} minutes ({running.task.too_long})"
                )
            if running.stop_reason:
                running.end()

    def _result(self, future: concurrent.futures.Future[Any], running: _Running) -> TaskResult:
        value, killed, lost = None, False, False
        try:
            pickled, failure, expected, lost = future.result()
        except Exception as error:  # noqa: BLE001 - a crash fails only its own task
            failure, expected = _failure_reason(running, error), False
            # The pool is broken if its process was killed before the task had begun.
            unbegun = isinstance(error, concurrent.futures.BrokenExecutor)
            died = unbegun or getattr(error, "exitcode", 0) == -signal.SIGKILL
            lost = killed = not running.stop_reason and died
            running.end()  # its worker is gone, but not what it started
        else:
            try:
                value = None if failure else pickle.loads(pickled)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - unpickling may import user code
                failure, expected = f"its result cannot be read: {_failure_reason(running, error)}", False
        log = "" if expected else log_tail(running.stem.with_suffix(".log"))
        failure += f"\n{log}" if log else ""
        return TaskResult(running.task.key, value, failure, running.seconds, killed=killed, lost=lost)


def _failure_reason(running: _Running, error: BaseException) -> str:
    if running.stop_reason:
        return running.stop_reason
    from pebble import ProcessExpired

    if isinstance(error, concurrent.futures.BrokenExecutor):
        return "its process died before it had begun"
    if isinstance(error, ProcessExpired):
        code = error.exitcode
        return f"its process died with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    return reason_of(error)
