"""One job at a time per device: runs of this machine that want the same device wait for each other."""

import fcntl
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from edgeopt.devices.environments import HOME_VARIABLE
from edgeopt.errors import DeviceError
from edgeopt.plugin import digest_of

_guard = threading.Lock()
_ours: dict[str, threading.RLock] = {}
_depth: dict[str, int] = {}


def _say(text: str) -> None:
    logging.getLogger("edgeopt").warning(text)


@contextmanager
def device_lock(name: str, connection: object, say: Callable[[str], None] = _say) -> Iterator[None]:
    """Have a device alone; the same thread may ask again for what it has.

    The lock is the kernel's: it ends with the process, however that ends.

    Args:
        name: the device's name.
        connection: how it is reached, as plain values: two devices of one name may be two machines.
        say: told in one line when another process has the device and this one waits.

    Raises:
        DeviceError: there is no place for a lock.
    """
    key = digest_of([name, connection])
    with _guard:
        own = _ours.setdefault(key, threading.RLock())
    with own:
        if _depth.get(key, 0):
            yield  # nobody but this thread gets here
            return
        descriptor = _open(f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{key[:16]}.lock")
        try:
            _take(descriptor, name, say)
            _depth[key] = 1
            yield
        finally:
            _depth[key] = 0
            os.close(descriptor)


def _take(descriptor: int, name: str, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        say(f"device {name} is in use by process {holder}: waiting for its job to end")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    # The file stays: removing it would let a third process lock another file of the same name.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _open(name: str) -> int:
    failure: OSError | None = None
    for place in _places():
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(place / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            failure = error
    raise DeviceError(
        f"no place for the lock of a device: {failure}",
        fix=f"name a folder that can be written with {HOME_VARIABLE}",
    )


def _places() -> tuple[Path, ...]:
    """Where locks may lie; the second is for accounts without a home folder, as containers have them."""
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return (Path(home).expanduser().absolute() / "locks",)
    return (
        platformdirs.user_state_path("edgeopt") / "locks",
        Path(tempfile.gettempdir()) / f"edgeopt-{os.getuid()}" / "locks",
    )
