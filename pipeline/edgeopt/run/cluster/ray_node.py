"""Starts a node of a Ray cluster on this machine: without telemetry, with a token, and nothing remains."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgeopt.config.text import log_tail
from edgeopt.devices.descendants import end
from edgeopt.devices.device import HOST
from edgeopt.errors import CannotRunError, UsageError
from edgeopt.run.cluster.ray_settings import (
    DEVICE,
    OBJECT_STORE_BYTES,
    access_problem,
    cluster_folder,
    default_cpus,
    environment,
)
from edgeopt.run.executors import gpus

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Addresses that Ray replaces by one that other machines reach; all others it takes as they are."""
START_SECONDS = 180.0
POLL_SECONDS = 0.2
SPARE_WORKERS = 2
"""Idle workers that a node keeps beyond those of its stages and devices."""
STARTED = "Ray runtime started."
LATE = "timed out during startup"
"""What Ray writes when a node needs more time to start than it has."""
TOKEN = Path("~/.ray/auth_token")
DEVICE_NAME = r"[\w.-]+"


class Node(NamedTuple):
    """How a node is started: as the head, or with the address ``HOST:PORT`` of one to join."""

    join: str = ""
    address: str = ""
    """Under which other nodes reach it; default: what Ray finds out."""
    port: int = 6379
    """Of the head."""
    cpus: int | None = None
    """Stages that it runs at a time; default: half of its cores, but at least two."""
    name: str = ""
    devices: tuple[str, ...] = ()
    """Devices that are attached to it, which all commands of the cluster may measure on."""
    gpus: int | None = None
    """GPUs to train on; default: those that torch sees."""


@contextmanager
def running(node: Node) -> Iterator["subprocess.Popen[bytes]"]:
    """A node, from when it is ready; all of its processes and files are removed on exit.

    Raises:
        UsageError: an address is unusable, or there is no token.
        CannotRunError: it does not start, such as without a head at the address.
    """
    _check(node)
    deadline = time.monotonic() + START_SECONDS
    with cluster_folder() as folder:
        log = folder / "node.log"
        process = _begin(node, folder, log)
        try:
            while not _started(process, log, deadline):
                if LATE not in log.read_text("utf-8", "replace") or time.monotonic() > deadline:
                    what = f"no node that joins {node.join}" if node.join else "no head of a cluster"
                    raise CannotRunError(
                        f"{what} can be started here: {_reason(log)}",
                        fix="check the address, the port, the token, and whether the cluster uses TLS",
                    )
                end(process.pid)  # a busy machine: Ray itself waits for half a minute only
                process.wait()
                process = _begin(node, folder, log)
            yield process
        finally:
            end(process.pid)
            process.wait()


def _begin(node: Node, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *_options(node, folder)],
            env={
                **os.environ,
                **environment(own=False),
                # By default as many as it runs stages at a time, so that jobs of devices start their own.
                "RAY_num_workers_soft_limit": str(_cpus(node) + len(node.devices) + SPARE_WORKERS),
                "TMPDIR": str(folder),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # to be ended as a group
        )


def _started(process: "subprocess.Popen[bytes]", log: Path, deadline: float) -> bool:
    """Whether a node is ready; else it has ended, is refused, which it would try for minutes, or is late."""
    while STARTED not in log.read_text("utf-8", "replace"):
        if process.poll() is not None or access_problem(log) or time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _check(node: Node) -> None:
    for host in (node.address, node.join.rpartition(":")[0]):
        if host in LOOPBACK:
            raise UsageError(
                f"Ray does not use the address {host}",
                fix="for nodes on this machine alone, give each one of its own: 127.0.0.2, 127.0.0.3",
            )
    for device in node.devices:
        if not re.fullmatch(DEVICE_NAME, device) or device == HOST:
            raise UsageError(
                f"a node cannot offer the device {device!r}",
                fix="give the name of a device file, without .yaml; host is the machine of each command",
            )
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    wanted = environment(own=False)["RAY_AUTH_MODE"] == "token"
    if wanted and not given and not os.path.isfile(os.path.expanduser(TOKEN)):
        raise UsageError(
            "a cluster runs the code that it is sent, so its nodes need a token, and here is none",
            fix=f"set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write {TOKEN}: ray get-auth-token --generate",
        )


def _cpus(node: Node) -> int:
    return default_cpus() if node.cpus is None else node.cpus


def _options(node: Node, folder: Path) -> Iterator[str]:
    yield from ("--block", "--disable-usage-stats")
    yield f"--temp-dir={folder}"
    yield f"--object-store-memory={OBJECT_STORE_BYTES}"
    yield f"--num-cpus={_cpus(node)}"
    yield f"--num-gpus={gpus.count() if node.gpus is None else node.gpus}"
    if node.join:
        yield f"--address={node.join}"
    else:
        yield from ("--head", f"--port={node.port}", "--include-dashboard=false")
    if node.address:
        yield f"--node-ip-address={node.address}"
    if node.name:
        yield f"--node-name={node.name}"
    if node.devices:
        yield f"--resources={json.dumps({f'{DEVICE}{device}': 1 for device in node.devices})}"


def _reason(log: Path) -> str:
    """The last errors in a log."""
    if problem := access_problem(log):
        return problem
    lines = log_tail(log).splitlines()
    named = [line for line in lines if re.search(r"error|panic|fail", line, re.IGNORECASE)]
    return "\n".join(named[-3:] or lines[-3:])
