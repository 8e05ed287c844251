"""The nodes of a Ray cluster: a stage runs where a CPU is free, and its result is stored from there."""

import importlib.metadata
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Self, TypeVar

from edgeopt.config.text import log_tail
from edgeopt.devices.descendants import end, mute_resource_tracker
from edgeopt.errors import CannotRunError, EdgeoptError, MissingPackageError, StoreError, UsageError, install
from edgeopt.run.cluster import messages, portable
from edgeopt.run.cluster.node import threads_here
from edgeopt.run.cluster.ray_driver import LOG, drive
from edgeopt.run.cluster.ray_settings import cluster_folder, installed
from edgeopt.run.executors.executor import Board, Executor, Machine, Place, Progress, Task, TaskResult
from edgeopt.run.store import Store, open_store

T = TypeVar("T")

ADDRESS = re.compile(r"\[?[\w.:-]+\]?:\d{1,5}")
CLOSE_SECONDS = 5.0
CONNECT_SECONDS = 120.0
POLL_SECONDS = 0.05
BOARD_SECONDS = 120.0
"""How long to wait for a node with a device: a board computer starts in a minute."""
READS = 2
"""Attempts to read the result of a task from the store."""


class RayExecutor(Executor):
    """Runs tasks on the nodes of a Ray cluster.

    Without an address, it joins the cluster of ``RAY_ADDRESS``, or starts one on this machine. The connection
    is made with the first task: a run that finds everything in the store needs none.
    """

    def __init__(self, address: str, place: Place) -> None:
        self.address = address
        self._place = place
        self._memory_limit: int | None = None
        self._tasks: dict[str, Task] = {}
        self._supplied: set[tuple[str, portable.Absent]] = set()
        """What was put into the store for a task: if the node still lacks it, it has another store."""
        self._reads: Counter[str] = Counter()
        """Failed attempts to read a result, by the key of the task."""
        self._results: list[TaskResult] = []
        self._called: dict[str, TaskResult | None] = {}
        """Tasks that a thread waits for, and their results."""
        self._lock = threading.RLock()
        self._progress: dict[str, Progress] = {}
        self._driver = _Driver(address)
        self._opened: Store | None = None

    @classmethod
    def connect(cls, address: str, place: Place) -> Self:
        address = address or os.environ.get("RAY_ADDRESS", "")
        if address and not ADDRESS.fullmatch(address):
            raise UsageError(f"{address!r} is not the address of a Ray cluster", fix="--on ray:HOST:PORT")
        if not installed():
            raise MissingPackageError("--on ray needs ray, which is not installed", fix=install("cluster"))
        return cls(address, place)

    def limit_memory(self, limit: int | None) -> None:
        self._memory_limit = limit

    def submit(self, task: Task) -> None:
        with self._lock:
            self._tasks[task.key] = task
            self._driver.send(messages.Submit(self._request(task)))

    def wait(self, seconds: float) -> list[TaskResult]:
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._tasks and not self._results:
                reply = self._driver.reply(max(0.0, deadline - time.monotonic()))
                if reply is None:
                    break
                self._take(reply)
            results, self._results = self._results, []
            return results

    def holder(self, board: Board) -> Callable[[Task], TaskResult] | None:
        return self._call if board.node or board.device in self._offers().devices else None

    def capacity(self) -> int:
        return max(1, self._offers().slots)

    def _call(self, task: Task) -> TaskResult:
        with self._lock:
            self._called[task.key] = None
            self.submit(task)
        while True:
            with self._lock:
                while (reply := self._driver.reply(0)) is not None:
                    self._take(reply)
                if (result := self._called[task.key]) is not None:
                    del self._called[task.key]
                    return result
            time.sleep(POLL_SECONDS)

    def progress(self) -> Iterator[Progress]:
        progress, self._progress = self._progress, {}
        yield from (each for key, each in progress.items() if key in self._tasks)

    def cancel(self, key: str) -> None:
        if key in self._tasks:
            self._driver.send(messages.Cancel(key))

    def machines(self, packages: Sequence[str]) -> Sequence[Machine]:
        nodes = self._answer(messages.Describe(tuple(packages)), messages.Nodes)
        return nodes.nodes

    def _offers(self) -> messages.Offers:
        return self._answer(messages.Survey(), messages.Offers)

    def _answer(self, question: messages.Command, kind: type[T]) -> T:
        with self._lock:
            self._driver.send(question)
            while not isinstance(reply := self._driver.reply(None), kind):
                self._take(reply)
            return reply

    def close(self, *, at_once: bool) -> None:
        self._driver.close()

    def _store(self) -> Store:
        if self._opened is None:
            self._opened = open_store(self._place.store)
        return self._opened

    def _request(self, task: Task) -> messages.Request:
        elsewhere = task.elsewhere
        assert elsewhere is not None, "a task for this machine only"
        content = (task.function, task.args, elsewhere.entry)
        return messages.Request(
            key=task.key,
            title=elsewhere.title,
            payload=portable.dump(content, self._store(), elsewhere.folder, elsewhere.code),
            worker=task.worker,
            minutes=task.minutes,
            too_long=task.too_long,
            memory_limit=self._memory_limit,
            versions={"edgeopt": importlib.metadata.version("edgeopt"), **elsewhere.versions},
            store=self._place.store,
            threads=threads_here(),
            board=elsewhere.board,
            patience=BOARD_SECONDS,
            gpu=task.gpu,
        )

    def _take(self, reply: messages.Reply | None) -> None:
        match reply:
            case messages.Notice("", line):
                self._place.say(line)
            case messages.Notice(key, line) if key in self._tasks:
                self._place.say(f"{self._title(key)}: {line}")
            case messages.Said(key, node, message) if key in self._tasks:
                self._take_from_node(key, node, message)

    def _take_from_node(self, key: str, node: str, message: messages.Message) -> None:
        match message:
            case messages.Started():
                self._progress[key] = Progress(key, 0.0, f"on {node}", at_once=True)
            case messages.Line(seconds, text):
                self._progress[key] = Progress(key, seconds, f"{text} (on {node})")
            case messages.Lacking(absent, notes):
                self._supply(key, node, absent, notes)
            case messages.Ended(failure, seconds, _, value, lost):
                if failure or value is not None or self._readable(key, node):
                    failure += f"\n  (on {node})" if failure and node else ""
                    self._end(key, failure, seconds, node, value, lost=lost)

    def _readable(self, key: str, node: str) -> bool:
        """Whether this machine finds the result of a task; otherwise, the task runs again, or has failed."""
        store = self._store()
        if store.get(key) is not None:
            return True
        reason = "; ".join(store.notes) or (
            "it was damaged on the way" if key in store.damaged else "it is not in the store of this machine"
        )
        self._opened = None  # a server that has failed is asked again
        self._reads[key] += 1
        line = f"{node} has stored its result, but {reason}"
        if self._reads[key] < READS:
            self._place.say(f"{self._title(key)}: {line}: it runs again")
            self._driver.send(messages.Submit(self._request(self._tasks[key])))
        else:
            self._end(key, f"{line}\n  {portable.ONE_STORE}", node=node, lost=True)
        return False

    def _supply(
        self, key: str, node: str, absent: tuple[portable.Absent, ...], notes: tuple[str, ...]
    ) -> None:
        """Put what a node lacks into the store, and give the task away again."""
        store = self._store()
        try:
            for each in absent:
                if (key, each) in self._supplied:
                    reason = "; ".join([*store.notes, *notes]) or f"{each.key[:12]} is not in its store"
                    raise StoreError(reason, fix=portable.ONE_STORE)
                self._supplied.add((key, each))
                portable.supply(each, store)
        except EdgeoptError as error:
            self._end(key, f"{node} lacks files of it: {error}", lost=True)
        else:
            self._driver.send(messages.Submit(self._request(self._tasks[key])))

    def _end(
        self,
        key: str,
        failure: str,
        seconds: float = 0.0,
        node: str = "",
        value: str | None = None,
        *,
        lost: bool = False,
    ) -> None:
        del self._tasks[key]
        stored = not failure and value is None
        result = TaskResult(key, value, failure, seconds, stored=stored, where=node, lost=lost)
        if key in self._called:
            self._called[key] = result
        else:
            self._results.append(result)

    def _title(self, key: str) -> str:
        elsewhere = self._tasks[key].elsewhere
        return elsewhere.title if elsewhere is not None else key


class _Driver:
    """The process that talks to Ray, started with the first command to it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._cleanup = ExitStack()
        self._pipe: Connection | None = None
        self._closed = False

    def send(self, command: messages.Command) -> None:
        """Send a command.

        Raises:
            CannotRunError: there is no cluster, or no longer.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send(command)
        except OSError:
            self.reply(None)  # why it has ended
            raise

    def reply(self, seconds: float | None) -> messages.Reply | None:
        """The next message, None if there is none for some seconds.

        Raises:
            CannotRunError: there is no cluster, or no longer.
        """
        pipe = self._pipe or self._start()
        try:
            if not pipe.poll(seconds):
                return None
            reply: messages.Reply = pipe.recv()
        except (EOFError, OSError):
            reply = messages.Unreachable(f"the process that talks to Ray has ended\n{log_tail(self._log)}")
        if isinstance(reply, messages.Unreachable):
            raise self._failure(reply.reason)
        return reply

    def close(self) -> None:
        """Disconnect, and end the cluster if it was started for this command."""
        self._closed = True
        if self._pipe is None:
            return
        with suppress(OSError):
            self._pipe.send(messages.Close())
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            end(self._process.pid or 0)
            self._process.join()
        self._pipe.close()
        self._pipe = None
        self._cleanup.close()

    def _start(self) -> Connection:
        if self._closed:  # a thread that measures goes on after an interruption
            raise CannotRunError("the command has left the cluster")
        folder = self._cleanup.enter_context(cluster_folder())
        self._log = folder / LOG
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        mute_resource_tracker()
        arguments = (other, self._address, folder, os.getpid())
        self._process = context.Process(target=drive, args=arguments, name="edgeopt-ray")
        self._process.start()
        other.close()  # so that its end is noticed
        if self.reply(CONNECT_SECONDS) is None:
            raise self._failure(f"no connection within {CONNECT_SECONDS:g} s")
        return self._pipe

    def _failure(self, reason: str) -> CannotRunError:
        if not self._address:
            return CannotRunError(f"Ray does not run on this machine: {reason}", fix="see --on local")
        return CannotRunError(
            f"the Ray cluster at {self._address} cannot be used: {reason}",
            fix="check its head, its token, whether it uses TLS, and that a node of it runs on this machine; "
            "run again to resume",
        )
