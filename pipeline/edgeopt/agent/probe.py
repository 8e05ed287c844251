"""What the device is: processor, memory, system, and which runtimes it has. Imports no framework."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from edgeopt_agent import VERSION

FLAGS = {
    "avx2": "avx2",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
}
"""The processor's own name of a feature -> ours; those that decide how fast and how exact int8 is."""

CPU_INFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def probe() -> dict[str, Any]:
    """Everything that a measurement depends on and that the device can tell."""
    from edgeopt_agent.session import find_runtime, runtime_names

    cpu, flags = _cpu()
    return {
        "agent": VERSION,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu,
        "cpu_flags": flags,
        "cores": _cores(),
        "memory_bytes": _memory(),
        "os": f"{platform.system()} {platform.release()}",
        "numpy": importlib.metadata.version("numpy"),
        "governor": _read(GOVERNOR),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "runtimes": {name: find_runtime(name).version() for name in runtime_names()},
    }


def _cpu() -> tuple[str, list[str]]:
    fields: dict[str, str] = {}
    for line in (_read(CPU_INFO) or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or _read(BOARD) or fields.get("hardware")
    present = (fields.get("flags") or fields.get("features") or "").split()
    return name or platform.processor() or "unknown", sorted({FLAGS[f] for f in present if f in FLAGS})


def _cores() -> int:
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n")
    except OSError:
        return None
