"""Manages a job folder on the device for the lifetime of a connection, and removes everything afterwards.

It is not part of the packed agent: its source is sent through the connection and executed directly, so that
the device needs only Python. Requests arrive on stdin, responses go to stdout: one line of JSON each,
followed by as many bytes as it announces. The end of stdin, even during a job, means that the client is
gone: the job is killed and the folder is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Iterator

MARKER = b"edgeopt-keeper "
"""Prefix of the first line, to skip what a login shell prints before it."""
PREFIX = "edgeopt-ssh-"
LOCK = ".keeper"
DEVICE = "\0edgeopt-device"
"""An abstract socket name, bound while a job runs: only one job at a time may measure."""
CHUNK = 1 << 18
LINE = 1 << 20
MAX_OUTPUT = 4 << 20
IDLE_SECONDS = 3600.0
WAIT_REPORT_SECONDS = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Gone(Exception):
    """The client is gone."""


class Wire:
    """Lines and bytes, in and out."""

    def __init__(self) -> None:
        self.buffer = b""
        self.sink = os.dup(1)
        os.dup2(2, 1)  # prints must not mix with the responses

    def line(self) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            if len(self.buffer) > LINE:
                raise Gone
            self.buffer += self._more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise Gone
        return request

    def data(self, size: int) -> Iterator[bytes]:
        while size:
            if not self.buffer:
                self.buffer = self._more()
            part, self.buffer = self.buffer[:size], self.buffer[size:]
            size -= len(part)
            yield part

    def respond(self, **fields: Any) -> None:
        self.write(json.dumps(fields).encode() + b"\n")

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.sink, view) :]
        except OSError as error:
            raise Gone from error

    def _more(self) -> bytes:
        if not select.select([0], [], [], IDLE_SECONDS)[0]:
            raise Gone
        data = os.read(0, CHUNK)
        if not data:
            raise Gone
        return data


class Keeper:
    """A job folder, and the requests for it."""

    def __init__(self, wire: Wire, place: str | None) -> None:
        self.wire = wire
        place = os.path.expanduser(place) if place else tempfile.gettempdir()
        sweep(place)
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            scratch = os.path.join(self.folder, LOCK + ".part")
            self.lock = locked(scratch)
            os.rename(scratch, os.path.join(self.folder, LOCK))
            os.chdir(self.folder)
        except OSError:
            self.close()
            raise

    def serve(self) -> None:
        while True:
            request = self.wire.line()
            operation = request.pop("do")
            if operation == "close":
                return
            getattr(self, "do_" + operation)(**request)

    def do_folder(self, name: str) -> None:
        try:
            os.makedirs(os.path.join(self.folder, name), exist_ok=True)
        except OSError as error:
            self.wire.respond(**failure(error))
            return
        self.wire.respond(ok=True)

    def do_put(self, name: str, size: int) -> None:
        digest = hashlib.sha256()
        path = os.path.join(self.folder, name)
        parts = self.wire.data(size)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            with open(path, "wb") as file:
                for part in parts:
                    digest.update(part)
                    file.write(part)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            for _ in parts:
                pass  # the client is already sending it
            self.wire.respond(**failure(error))
            return
        self.wire.respond(sha256=digest.hexdigest())

    def do_get(self, name: str) -> None:
        digest = hashlib.sha256()
        path = os.path.join(self.folder, name)
        try:
            if not os.path.isfile(path):
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            file = open(path, "rb")  # noqa: SIM115 - only opening it is guarded
        except OSError as error:
            self.wire.respond(**failure(error))
            return
        with file:
            left = os.fstat(file.fileno()).st_size
            self.wire.respond(size=left)
            while left:
                part = file.read(min(left, CHUNK))
                if not part:
                    raise Gone
                digest.update(part)
                self.wire.write(part)
                left -= len(part)
        self.wire.respond(sha256=digest.hexdigest())

    def do_run(self, arguments: list[str], seconds: float) -> None:
        lock = self._device_lock()
        try:
            self.wire.respond(started=True)
            self._run(arguments, seconds)
        finally:
            if lock is not None:
                lock.close()

    def _device_lock(self) -> socket.socket | None:
        """Wait until no other job runs on this device; returns the socket that holds the lock."""
        if not sys.platform.startswith("linux"):
            return None
        last_report = 0.0
        while True:
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                lock.bind(DEVICE)
                return lock
            except OSError as error:
                lock.close()
                if error.errno != errno.EADDRINUSE:
                    return None
            if time.monotonic() - last_report > WAIT_REPORT_SECONDS:
                self.wire.respond(waiting=True)
                last_report = time.monotonic()
            if select.select([0], [], [], 0.3)[0]:
                raise Gone

    def _run(self, arguments: list[str], seconds: float) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            self.wire.respond(failure=f"cannot start {sys.executable}: {error}", errno=0)
            return
        wake, woken = os.pipe()
        waiter = threading.Thread(target=watch, args=(process.pid, woken), daemon=True)
        waiter.start()
        try:
            in_time, outputs = follow(process, wake, time.monotonic() + seconds)
        finally:
            kill_group(process.pid)
            waiter.join()
            process.wait()
            kill_orphans()
            for descriptor in (wake, woken):
                os.close(descriptor)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        if not in_time:
            self.wire.respond(expired=True)
            return
        self.wire.respond(returncode=process.returncode, stdout=len(outputs[0]), stderr=len(outputs[1]))
        self.wire.write(bytes(outputs[0]))
        self.wire.write(bytes(outputs[1]))

    def close(self) -> None:
        os.chdir("/")
        for _ in range(5):
            # A process that was just killed may still be writing.
            shutil.rmtree(self.folder, ignore_errors=True)
            if not os.path.lexists(self.folder):
                break
            time.sleep(0.1)


def follow(process: Any, wake: int, end: float) -> tuple[bool, tuple[bytearray, bytearray]]:
    """Collect the output of a process until it ends; False if the time is up first.

    Raises:
        Gone: the client is gone, or sent a request during the job.
    """
    outputs = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    first, second = outputs.values()
    ended = False
    while True:
        left = end - time.monotonic()
        if left <= 0 or (ended and not outputs):
            return ended, (first, second)
        ready, _, _ = select.select(list(outputs) if ended else [0, wake, *outputs], [], [], left)
        if 0 in ready:
            raise Gone
        for descriptor in ready:
            if descriptor == wake:
                ended = True
                kill_group(process.pid)
                # The pipes may still contain data, and a process outside the group may keep them open.
                end = time.monotonic() + 1.0
                continue
            data = os.read(descriptor, CHUNK)
            if data:
                output = outputs[descriptor]
                output += data
                del output[: max(0, len(output) - MAX_OUTPUT)]
            else:
                del outputs[descriptor]


def watch(process: int, woken: int) -> None:
    """Write to a pipe when a process ends, without reaping the process."""
    # Until it is reaped, its pid is not reused, so that its group can be killed safely.
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(OSError):
        os.write(woken, b"!")


def kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def kill_orphans() -> None:
    """Kill processes that a job left outside its group: they became children of this process."""
    while True:
        orphans = children()
        for process in orphans:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        if not orphans:
            return


def children() -> list[int]:
    """The child processes of this one, on Linux."""
    processes = []
    for name in os.listdir("/proc") if sys.platform.startswith("linux") else []:
        # The program's name, in parentheses, may itself contain parentheses: split at the last one.
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                processes.append(int(name))
    return processes


def die_with_parent() -> Callable[[], Any] | None:
    """A ``preexec_fn`` that makes a child process die with this one, even if this one is killed."""
    prctl = find_prctl()
    return None if prctl is None else lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def find_prctl() -> Any:
    """The function ``prctl`` on Linux, None elsewhere."""
    try:
        import ctypes

        return ctypes.CDLL(None).prctl
    except (ImportError, AttributeError, OSError):
        return None


def locked(path: str) -> int:
    """Open a file and lock it for the lifetime of this process.

    Raises:
        OSError: another process holds the lock.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def sweep(place: str) -> None:
    """Remove the folders of keepers that were killed before they could remove them."""
    try:
        names = [name for name in os.listdir(place) if name.startswith(PREFIX)]
    except OSError:
        return
    for name in names:
        folder = os.path.join(place, name)
        try:
            info = os.lstat(folder)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                continue
            if not os.path.lexists(os.path.join(folder, LOCK)):
                continue  # still being created
            lock = locked(os.path.join(folder, LOCK))
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def failure(error: OSError) -> dict[str, Any]:
    return {"failure": error.strerror or str(error), "errno": errno.errorcode.get(error.errno or 0, "")}


def on_signal(number: int, frame: object) -> None:
    raise Gone


def main() -> None:
    """Create the folder, report it, and serve requests until the client closes or is gone."""
    wire = Wire()
    prctl = find_prctl()
    if prctl is not None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a job become children of this process
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, on_signal)
    with contextlib.suppress(Gone):
        settings = wire.line()
        try:
            keeper = Keeper(wire, settings["folder"])
        except OSError as error:
            wire.write(MARKER)
            wire.respond(**failure(error))
            return
        try:
            wire.write(MARKER)
            wire.respond(
                folder=keeper.folder,
                executable=sys.executable,
                python=sys.version.split()[0],
                numpy=importlib.util.find_spec("numpy") is not None,
            )
            keeper.serve()
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            keeper.close()


if __name__ == "__main__":
    main()
