"""The tasks of a command on a Ray cluster: submitted, given to able nodes, repeated if they were lost."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from edgeopt.config.text import reason_of
from edgeopt.devices.descendants import end_descendants
from edgeopt.run.cluster.messages import (
    Cancel,
    Close,
    Command,
    Describe,
    Ended,
    Lacking,
    Message,
    Nodes,
    Notice,
    Refused,
    Reply,
    Request,
    Said,
    Submit,
    Survey,
    Unreachable,
)
from edgeopt.run.cluster.node import serve
from edgeopt.run.cluster.ray_cluster import Cluster, gpus
from edgeopt.run.cluster.ray_settings import (
    OBJECT_STORE_BYTES,
    default_cpus,
    host_and_port,
)
from edgeopt.run.executors.executor import Board
from edgeopt.run.executors.gpus import count

RETRIES = 2
"""Repetitions of a task whose worker or node was lost."""
POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""Between two looks at the nodes: as long as Ray needs to notice that one is gone."""
UNSTARTED = 20
"""Attempts to begin a task that is lost each time before it has begun."""
HEAD_SECONDS, HEAD_LOST_SECONDS = 2.0, 12.0
"""Seconds between two looks for the head of the cluster, and without one until it counts as lost.

Ray itself waits a minute, and then ends this process.
"""
CANCEL_SECONDS = 10.0
"""Until a task that goes on is interrupted again: a worker can miss an interrupt, such as in a callback."""
CANCELLED = "it was cancelled"


@dataclass
class _Running:
    request: Request
    generator: Any
    node: str = ""
    """Where it runs; '' before it starts."""
    losses: int = 0
    unstarted: int = 0
    """Losses before it had begun."""
    cancelled_at: float = 0.0
    """When it was interrupted last, by the monotonic clock; 0 while it may run."""
    missed_since: float = 0.0
    """When no node had its device, by the monotonic clock; 0 while one has."""
    gpu: bool = False
    """Whether it was given to the nodes with a GPU."""


class Driver:
    """Serves a command over a pipe, on the cluster at ``address``, or on one that it starts in ``folder``."""

    def __init__(self, pipe: Connection, address: str, folder: Path) -> None:
        import ray

        self.ray = ray
        self.pipe = pipe
        self.sending = threading.Lock()
        own: dict[str, Any] = {
            "num_cpus": default_cpus(),
            "num_gpus": count(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": str(folder),
            "_node_ip_address": "127.0.0.1",
        }
        ray.init(
            **({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR
        )
        self.head = str(ray.get_runtime_context().gcs_address)
        self.work = ray.remote(max_retries=0, num_returns="streaming", scheduling_strategy="SPREAD")(_work)
        self.running: dict[str, _Running] = {}
        self.refusals: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        """By the versions that tasks need: the ids of the nodes that refused one, and why."""
        self.cluster = Cluster(ray)
        self.waiting: list[_Running] = []
        """Tasks that were lost, and those whose device no node has: they start at the next look."""
        self.looked_at = 0.0
        self.warned = False
        threading.Thread(target=self.watch_head, daemon=True).start()

    def watch_head(self) -> None:
        """End this process when nothing listens at the address of the head any more.

        In a thread: without a head, calls of Ray do not return for a minute.
        """
        head, seen_at = host_and_port(self.head), time.monotonic()
        while time.monotonic() - seen_at < HEAD_LOST_SECONDS:
            with suppress(OSError), socket.create_connection(head, HEAD_SECONDS):
                seen_at = time.monotonic()
            time.sleep(HEAD_SECONDS)
        self.send(Unreachable(f"its head at {self.head} is gone"))
        os._exit(0)

    def send(self, reply: Reply) -> None:
        """Send a message; two threads do."""
        with self.sending:
            self.pipe.send(reply)

    def serve(self) -> None:
        """Serve the pipe until it is closed, or the cluster is lost."""
        while True:
            while self.pipe.poll(0 if self.running else 4 * POLL_SECONDS):
                command = self.pipe.recv()
                if isinstance(command, Close):
                    return
                self.obey(command)
            self.look_for_nodes()
            for running in self.running.values():
                if 0 < running.cancelled_at < time.monotonic() - CANCEL_SECONDS:
                    self.interrupt(running)
            generators = {each.generator: each for each in self.running.values()}
            if generators:
                ready, _ = self.ray.wait([*generators], num_returns=1, timeout=POLL_SECONDS)
                for generator in ready:
                    self.advance(generators[generator])

    def obey(self, command: Command) -> None:
        match command:
            case Submit(request):
                self.start(_Running(request, None))
            case Cancel(key):
                self.cancel(key)
            case Describe(packages):
                self.send(Nodes(tuple(self.cluster.describe(packages))))
            case Survey():
                self.send(self.cluster.offers())

    def cancel(self, key: str) -> None:
        if key in self.running:
            self.interrupt(self.running[key])
        for running in [each for each in self.waiting if each.request.key == key]:
            self.waiting.remove(running)
            self.end(running, CANCELLED)

    def interrupt(self, running: _Running) -> None:
        running.cancelled_at = time.monotonic()
        self.ray.cancel(running.generator)

    def start(self, running: _Running) -> None:
        """Give a task to a node that has its device and has not refused its like; fail it if all have."""
        refusals, board = self.refusals.get(_needs(running), {}), running.request.board
        able = self.cluster.able(board)
        if board is not None and not able:
            self.wait_for_board(running, board)
            return
        if refusals and all(node["NodeID"] in refusals for node in able):
            reasons = "; ".join(refusals.values())
            self.end(running, f"no node of the cluster has the packages of this machine: {reasons}")
            return
        options: dict[str, Any] = {}
        willing = [node for node in able if node["NodeID"] not in refusals]
        running.gpu = running.request.gpu and any(map(gpus, willing))
        if board is not None:
            options = self.cluster.options(board, willing)
        elif refusals:
            options = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(refusals))})"}}
        elif not able and not self.warned:
            self.warned = True
            self.send(Notice("", "no node of the cluster runs stages: waiting for one with --cpus"))
        # A node may have a GPU that it does not offer.
        request = running.request._replace(gpu=running.gpu)
        work = self.work.options(**options, num_gpus=int(running.gpu))
        running.generator, running.node = work.remote(request), ""
        running.missed_since = 0.0
        self.running[running.request.key] = running

    def wait_for_board(self, running: _Running, board: Board) -> None:
        """Keep a task until a node has its device, or it has been missed for too long."""
        now, patience = time.monotonic(), running.request.patience
        missing = f"no node of the cluster offers the device {board.device}"
        if board.node:
            missing = f"the node {board.node}, which has the device {board.device}, is not in the cluster"
        if running.missed_since == 0.0:
            running.missed_since = now
            self.send(Notice(running.request.key, f"{missing}: waiting for it, {patience:g} s"))
        if now - running.missed_since > patience:
            self.end(running, f"{missing}, for {patience:g} s")
        else:
            self.waiting.append(running)

    def look_for_nodes(self) -> None:
        """Start the waiting tasks; take those back whose device, or last GPU, has gone while others used it.

        Ray itself would keep these in its queue for good.
        """
        queued = [
            each for each in self.running.values() if (each.request.board or each.gpu) and not each.node
        ]
        if not (self.waiting or queued) or time.monotonic() - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = time.monotonic()
        for running in queued:
            able = self.cluster.able(running.request.board)
            if not (any(map(gpus, able)) if running.gpu else able):
                del self.running[running.request.key]
                self.ray.cancel(running.generator)
                self.waiting.append(running)
        waiting, self.waiting = self.waiting, []
        for running in waiting:
            self.start(running)

    def advance(self, running: _Running) -> None:
        """Take the next message of a task, or find out why there is none."""
        from ray import exceptions

        try:
            node, message = self.ray.get(next(running.generator))
        except exceptions.TaskCancelledError:
            self.end(running, CANCELLED)
        except exceptions.RayTaskError as error:
            self.end(running, f"the node failed: {explained(error.cause or error)}")
        except exceptions.RayError as error:
            self.repeat(running, "a node" if isinstance(error, exceptions.NodeDiedError) else "a worker")
        except StopIteration:
            self.repeat(running, "a worker")
        else:
            running.node = self.cluster.name(node)
            self.take(running, node, message)

    def take(self, running: _Running, node: str, message: Message) -> None:
        if isinstance(message, Refused):
            self.refuse(running, node, message)
        elif isinstance(message, Ended) and message.killed:
            self.repeat(running, "the process of the stage")
        else:
            if isinstance(message, Ended | Lacking):
                del self.running[running.request.key]
            self.send(Said(running.request.key, running.node, message))

    def refuse(self, running: _Running, node: str, message: Refused) -> None:
        """Give the task to another node, and tasks that need the same packages never to this one again."""
        refusals = self.refusals.setdefault(_needs(running), {})
        if node not in refusals:
            listed = ", ".join(
                f"{package} {here or 'missing'} instead of {needed}"
                for package, (needed, here) in message.versions.items()
            )
            refusals[node] = f"{running.node} has {listed}"
            self.send(Notice("", f"{refusals[node]}: it gets no stage that needs these versions"))
        self.start(running)

    def repeat(self, running: _Running, lost: str) -> None:
        if running.cancelled_at:
            self.end(running, CANCELLED)
            return
        del self.running[running.request.key]
        if running.node:
            running.losses += 1
            if running.losses > RETRIES:
                self.end(running, f"{lost} was lost on {running.node}, for the third time")
                return
            line = f"{lost} was lost on {running.node}: it runs again ({running.losses} of {RETRIES})"
            self.send(Notice(running.request.key, line))
        else:  # a node that Ray still takes for alive
            running.unstarted += 1
            if running.unstarted > UNSTARTED:
                self.end(running, f"{lost} was lost before it had begun, {UNSTARTED} times")
                return
        self.waiting.append(running)

    def end(self, running: _Running, failure: str) -> None:
        """Give a task up: it was cancelled, or cannot run on the cluster as that is now."""
        self.running.pop(running.request.key, None)
        ended = Ended(failure, lost=failure != CANCELLED)
        self.send(Said(running.request.key, running.node, ended))

    def close(self) -> None:
        """End the running tasks, and the cluster if it was started here."""
        for running in self.running.values():
            self.ray.cancel(running.generator)
        self.ray.shutdown()
        end_descendants(psutil.Process())


def _needs(running: _Running) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(running.request.versions.items()))


def _work(request: Request) -> Iterator[tuple[str, Message]]:
    """On a node: its id with each message about a task."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    for message in serve(request):
        yield node, message


def explained(error: Exception) -> str:
    """The first line of what an exception of Ray says."""
    return reason_of(error).splitlines()[0]
