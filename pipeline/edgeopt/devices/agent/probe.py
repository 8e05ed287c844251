"""Describes the device: processor, memory, system and installed runtimes. Imports no framework."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from edgeopt_agent import VERSION
from edgeopt_agent.conditions import conditions, read_text
from edgeopt_agent.cuda import gpus
from edgeopt_agent.protocol import Probe

FLAGS = {
    "avx2": "avx2",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
}
"""The kernel's name of a CPU feature -> ours; those that affect the speed and exactness of int8."""

CPU_INFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")


def probe() -> Probe:
    """Everything that a measurement depends on and that the device can report."""
    from edgeopt_agent.session import find_runtime, runtime_names

    cpu, flags = _cpu()
    now = conditions()
    return {
        "agent": VERSION,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu,
        "cpu_flags": flags,
        "cores": _cores(),
        "memory_bytes": _memory(),
        "gpus": gpus(),
        "os": f"{platform.system()} {platform.release()}",
        "numpy": _numpy(),
        "governor": now["governor"],
        "load": now["load"],
        "temperature_c": now["temperature_c"],
        "runtimes": {name: find_runtime(name).version() for name in runtime_names()},
    }


def _numpy() -> str | None:
    try:
        return importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, list[str]]:
    fields: dict[str, str] = {}
    for line in (read_text(CPU_INFO) or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or read_text(BOARD) or fields.get("hardware")
    present = (fields.get("flags") or fields.get("features") or "").split()
    if platform.machine().startswith(("aarch64", "arm")) and "flags" in fields:
        # Only x86 calls them flags: under emulation, /proc/cpuinfo is that of the host.
        return f"{os.environ.get('QEMU_CPU') or platform.machine()}, emulated on {name or 'x86'}", []
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
