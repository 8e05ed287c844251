"""Processes of this machine: one per kind of framework, kept warm from task to task."""

import concurrent.futures
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool

from edgeopt.config.units import show_bytes
from edgeopt.plugin import Worker
from edgeopt.run.executors.executor import Ended, Executor, Progress, Task
from edgeopt.run.executors.worker import prepare, work

MEMORY_SHARE = 0.8
"""Of this machine's memory: what one task may take unless somebody says otherwise."""
POLL_SECONDS = 0.2
GONE_SECONDS = 2.0
"""What the answer of a process that is gone may still take."""
LOG_LINES = 12


@dataclass
class _Running:
    """A task under way, with the files that its worker leaves: process id, log and progress."""

    task: Task
    stem: Path
    killed: str = ""
    """Why it was stopped from here."""
    lines_seen: int = 0
    gone_since: float = 0.0
    """When its process was first found missing, by the monotonic clock."""

    @property
    def started(self) -> bool:
        return self._started() is not None

    @property
    def seconds(self) -> float:
        """Since it started, by the monotonic clock."""
        started = self._started()
        return 0.0 if started is None else time.monotonic() - started[1]

    def process(self) -> psutil.Process | None:
        """The process that runs it; None before it started."""
        started = self._started()
        try:
            return None if started is None else psutil.Process(started[0])
        except psutil.Error:
            return None

    def _started(self) -> tuple[int, float] | None:
        try:
            process, moment = self.stem.with_suffix(".pid").read_text().split()
        except (OSError, ValueError):  # not yet, or half written
            return None
        return int(process), float(moment)

    def last_words(self) -> str:
        try:
            lines = self.stem.with_suffix(".log").read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(["  | " + line[:300] for line in lines if line.strip()][-LOG_LINES:])


class LocalExecutor(Executor):
    """Tasks of different frameworks run side by side, those of one framework one after the other."""

    def __init__(self, memory_limit: int | None = None) -> None:
        """``memory_limit``: bytes that one task and what it started may take."""
        self.memory_limit = memory_limit or int(psutil.virtual_memory().total * MEMORY_SHARE)
        self._pools: dict[Worker, ProcessPool] = {}
        self._running: dict[concurrent.futures.Future[Any], _Running] = {}
        self._count = 0
        self._folder = Path(tempfile.mkdtemp(prefix="edgeopt-"))

    def submit(self, task: Task) -> None:
        self._count += 1
        running = _Running(task, self._folder / f"task{self._count}")
        # Its own time limit is not used: it goes by the clock on the wall, which may be set meanwhile.
        future = self._pool(task.worker).schedule(work, args=(running.stem, task.function, task.args))
        self._running[future] = running

    def wait(self, seconds: float) -> list[Ended]:
        deadline = time.monotonic() + seconds
        while self._running:
            left = max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))
            done, _ = concurrent.futures.wait(
                self._running, timeout=left, return_when=concurrent.futures.FIRST_COMPLETED
            )
            if done:
                return [self._ended(future, self._running.pop(future)) for future in done]
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
                running.killed = "it was cancelled"
                future.cancel()

    def close(self, *, at_once: bool) -> None:
        for pool in self._pools.values():
            if at_once:
                pool.stop()
            else:
                pool.close()
        for pool in self._pools.values():
            pool.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _pool(self, worker: Worker) -> ProcessPool:
        if worker not in self._pools:
            _silence_tracker()
            self._pools[worker] = ProcessPool(
                max_workers=1,
                # Never fork: a framework's threads and locks do not survive it.
                context=multiprocessing.get_context("spawn"),
                initializer=prepare,
                initargs=(worker, os.getpid()),
            )
        return self._pools[worker]

    def _enforce_limits(self) -> None:
        """Stop what takes too long or too much memory, with everything that it started."""
        for future, running in self._running.items():
            process = running.process()
            if process is None and running.started:
                # pebble does not count exit code 0 as a death, and would wait for ever.
                running.gone_since = running.gone_since or time.monotonic()
                if time.monotonic() - running.gone_since > GONE_SECONDS and not future.done():
                    running.killed = "its process died with exit code 0"
                    future.cancel()
            if process is None or running.killed:
                continue
            try:
                family = [process, *process.children(recursive=True)]
                used = sum(each.memory_info().rss for each in family)
                if used > self.memory_limit:
                    running.killed = (
                        f"stopped at {show_bytes(used)} of memory, over the limit of "
                        f"{show_bytes(self.memory_limit)} (limits.stage_memory)"
                    )
                elif running.seconds > running.task.minutes * 60:
                    running.killed = (
                        f"stopped after {running.task.minutes:g} minutes ({running.task.too_long})"
                    )
                if running.killed:
                    for each in family:
                        each.kill()
            except psutil.Error:
                continue  # just gone

    def _ended(self, future: concurrent.futures.Future[Any], running: _Running) -> Ended:
        try:
            value, failure, expected = future.result()
        except Exception as error:  # noqa: BLE001 - what a task does to its process costs that task alone
            value, failure, expected = None, _why(running, error), False
        words = "" if expected else running.last_words()
        return Ended(running.task.key, value, failure + (f"\n{words}" if words else ""), running.seconds)


def _why(running: _Running, error: BaseException) -> str:
    if running.killed:
        return running.killed
    if isinstance(error, ProcessExpired):
        code = error.exitcode
        return f"its process died with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    return f"{type(error).__name__}: {error}"


def _silence_tracker() -> None:
    """Start multiprocessing's resource tracker so that it does not speak.

    Libraries of the frameworks (joblib's loky) tell it of semaphores that they later remove by
    themselves, and it would warn on the user's screen about each at the end.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
