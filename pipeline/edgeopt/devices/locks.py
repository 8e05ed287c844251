"""Locks that allow one job at a time per device, across processes on this machine."""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from edgeopt.config.scratch import lasting_temporary_folder
from edgeopt.devices.environments import HOME_VARIABLE
from edgeopt.errors import DeviceError
from edgeopt.plugin import digest_of

_guard = threading.Lock()
_ours: dict[str, threading.RLock] = {}
_depth: dict[str, int] = {}


def _warn(text: str) -> None:
    logging.getLogger("edgeopt").warning(text)


@contextmanager
def device_lock(name: str, connection: object, say: Callable[[str], None] = _warn) -> Iterator[None]:
    """Hold a device exclusively; reentrant within a thread.

    The lock is the kernel's: it is released when the process ends, however it ends.

    Args:
        name: the device's name.
        connection: its connection as plain values: two devices with one name may be two machines.
        say: called with one line when another process holds the device and this one waits.

    Raises:
        DeviceError: the lock file cannot be created.
    """
    key = digest_of([name, connection])
    with _guard:
        own = _ours.setdefault(key, threading.RLock())
    with own:
        if _depth.get(key, 0):
            yield  # only this thread gets here
            return
        descriptor = _open(f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{key[:16]}.lock")
        try:
            _acquire(descriptor, name, say)
            _depth[key] = 1
            yield
        finally:
            _depth[key] = 0
            os.close(descriptor)


def _acquire(descriptor: int, name: str, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        say(f"device {name} is in use by process {holder}: waiting for its job to end")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    # The file stays: if it were removed, a third process could lock a new file of the same name.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _open(name: str) -> int:
    failure: OSError | None = None
    for place in _lock_folders():
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(place / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            failure = error
    raise DeviceError(
        f"cannot create the lock file of a device: {failure}",
        fix=f"set {HOME_VARIABLE} to a writable folder",
    )


def _lock_folders() -> tuple[Path, ...]:
    """Candidate folders for locks; the second is for accounts without a home folder, as in containers."""
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return (Path(os.path.expanduser(home)).absolute() / "locks",)
    return (
        platformdirs.user_state_path("edgeopt") / "locks",
        lasting_temporary_folder() / f"edgeopt-{os.getuid()}" / "locks",
    )
