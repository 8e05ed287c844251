"""Ends everything that a process started: its descendants, its group, and what left both.

A process that is started in the background outlives the one that started it. It stays in the process group
(POSIX.1-2017, section 11.1.2) unless it leaves it, as daemons do, and loses its parent when that exits. On
Linux, the process of a task adopts such orphans (prctl(2), ``PR_SET_CHILD_SUBREAPER``): as long as it lives,
the tree of its descendants is complete.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_LISTED = Path("/proc/thread-self/children").exists()
"""Whether the kernel lists the children of each thread."""
_KILL_SECONDS = 2.0
"""Time for killed processes to end; longer means that the kernel holds them, as in a hanging file system."""


def lead_group() -> None:
    """Give this process a session and group of its own; on Linux, make it adopt orphaned descendants."""
    with contextlib.suppress(PermissionError):  # it already leads a group
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """End this process and everything it started when its parent, which has this id, is gone."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    end_descendants(psutil.Process())
    os._exit(1)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """The living descendants of a process; empty if it has exited."""
    try:
        return [each for each in process.children(recursive=True) if _alive(each)]
    except psutil.Error:
        return []


def family(process: psutil.Process) -> list[psutil.Process]:
    """As `descendants`, without a look at all processes of the machine: for what is asked every moment.

    One that starts or ends meanwhile may be missing (proc_pid_task(5), ``children``): not for killing.
    """
    if not _LISTED:
        return descendants(process)
    found: list[psutil.Process] = []
    waiting = [process.pid]
    while waiting:
        with contextlib.suppress(OSError, psutil.Error):  # it has just ended
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                for child in map(int, (task / "children").read_text().split()):
                    waiting.append(child)
                    found.append(psutil.Process(child))
    return [each for each in found if _alive(each)]


def memory(processes: Iterable[psutil.Process]) -> int:
    """Bytes of memory that processes occupy."""
    used = 0
    for each in processes:
        with contextlib.suppress(psutil.Error):  # it has just exited
            used += each.memory_info().rss
    return used


def end_descendants(process: psutil.Process, spared: Collection[psutil.Process] = ()) -> None:
    """Kill all descendants of a process but those ``spared``, including those that they start meanwhile."""
    deadline = time.monotonic() + _KILL_SECONDS
    while found := [each for each in descendants(process) if each not in spared]:
        if time.monotonic() >= deadline:
            break
        _kill(found)
        if process.pid == os.getpid():
            psutil.wait_procs(found, timeout=_KILL_SECONDS)  # reaps those that it adopted
        else:
            time.sleep(0.01)


def end(leader: int, known: Iterable[psutil.Process] = ()) -> None:
    """Kill the process that leads a group, and everything it started.

    ``known``: processes that were its descendants. If it has exited, its tree is gone, and only they can be
    found outside its group.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(leader)
        process.suspend()  # it starts nothing any more, but still adopts orphans
        end_descendants(process)
        process.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    _kill(known)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for each in processes:
        with contextlib.suppress(psutil.Error):  # psutil checks that the id was not reused
            each.kill()


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def mute_resource_tracker() -> None:
    """Start multiprocessing's resource tracker with its warnings disabled.

    Libraries (joblib's loky) register semaphores that they remove themselves, and the tracker would print a
    warning about each at exit.
    """
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def resource_tracker_here() -> list[psutil.Process]:
    """Multiprocessing's resource tracker of this process, which warns when it finds itself killed."""
    from multiprocessing import resource_tracker

    pid = getattr(resource_tracker._resource_tracker, "_pid", None)
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(pid)] if pid else []
    return []
