"""The process of a command that talks to Ray: it connects, and serves the tasks of the command.

Ray ends the process of a driver whose cluster is gone, prints when it is interrupted, and keeps threads. In a
process of its own, none of this reaches the command. It exchanges tuples with the command over a pipe.
"""

import os
import socket
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from edgeopt.devices.descendants import end_with, lead_group
from edgeopt.run.cluster.messages import Ready, Unreachable
from edgeopt.run.cluster.ray_settings import access_problem, environment, host_and_port
from edgeopt.run.cluster.ray_tasks import HEAD_LOST_SECONDS, POLL_SECONDS, Driver, explained

LOG = "driver.log"


def drive(pipe: Connection, address: str, folder: Path, parent: int) -> None:
    """Connect to the cluster at ``address``, or start one in ``folder``, and serve the pipe."""
    lead_group()
    end_with(parent)
    _log_to(folder / LOG)
    os.environ.update(environment(own=not address))
    connected = threading.Event()
    threading.Thread(target=_watch_access, args=(folder / LOG, pipe, connected), daemon=True).start()
    try:
        if address:
            # Ray itself would wait for ten minutes and more.
            with socket.create_connection(host_and_port(address), HEAD_LOST_SECONDS):
                pass
        driver = Driver(pipe, address, folder)
    except Exception as error:  # noqa: BLE001 - whatever Ray raises, and that is a lot
        pipe.send(Unreachable(explained(error)))
        return
    finally:
        connected.set()
    pipe.send(Ready())
    with suppress(EOFError, BrokenPipeError):
        driver.serve()
    driver.close()


def _watch_access(log: Path, pipe: Connection, connected: threading.Event) -> None:
    """End this process if Ray writes that its token or certificate is wrong: it tries for minutes."""
    while not connected.wait(POLL_SECONDS):
        if problem := access_problem(log):
            pipe.send(Unreachable(problem))
            os._exit(0)


def _log_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout.flush()
