"""Current and peak resident memory of the process."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

PROCESS = Path("/proc/self")
RESET_PEAK = "5"


class Peak:
    """Growth of the peak resident memory since the creation of the object.

    Linux can reset its high-water mark. Elsewhere, only the peak of the whole process is known, so the
    value is a lower bound; ``method`` names the source.
    """

    def __init__(self) -> None:
        gc.collect()
        _trim_heap()
        try:
            (PROCESS / "clear_refs").write_text(RESET_PEAK)
            self.method = "VmHWM"
        except OSError:
            self.method = "ru_maxrss"
        self.before = _resident() if self.method == "VmHWM" else _highest()

    def bytes(self) -> int:
        """Bytes above the start; never negative."""
        highest = _highest()
        if self.method == "VmHWM":
            # The kernel updates the mark in coarse steps per thread; the sum over all pages is exact.
            highest = max(_status("VmHWM"), _resident())
        return max(0, highest - self.before)


def _trim_heap() -> None:
    """Return freed heap memory to the system: a model allocated in it would not be counted."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # a C library without it, such as musl
            return


def _resident() -> int:
    try:
        for line in (PROCESS / "smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _highest() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
