"""Shared by the runtimes on NVIDIA GPUs: queries to ``nvidia-smi``, and checks of their options.

Imports only the standard library. The fields are those of ``nvidia-smi --help-query-gpu`` that every driver
supports: it rejects a query with one unknown field.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import GpuState

PROGRAM = "nvidia-smi"
SECONDS = 20.0
"""Time limit of a query: without persistence mode, the first one loads the driver, which takes seconds."""
STATIC_FIELDS = {"name": "name", "driver_version": "driver", "memory.total": "memory_mib"}
STATE_FIELDS = {
    "clocks.sm": "clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
}
TEXTS = ("name", "driver")


def gpus() -> list[dict[str, Any]]:
    """Name, driver and memory of each GPU; an empty list without a GPU or without ``nvidia-smi``."""
    return parse(_query("--query-gpu=" + ",".join(STATIC_FIELDS)), list(STATIC_FIELDS.values()))


def gpu_states() -> list[GpuState]:
    """Current clocks, temperature and power of each GPU; ``None`` for values that it does not report."""
    rows: list[Any] = parse(_query("--query-gpu=" + ",".join(STATE_FIELDS)), list(STATE_FIELDS.values()))
    return rows


def gpu_memory_bytes(pid: int | None = None) -> int | None:
    """GPU memory that a process holds, summed over all GPUs; ``None`` if the driver does not list it.

    In a container, the driver may know the process under another pid and then lists nothing.
    """
    rows = parse(_query("--query-compute-apps=pid,used_memory"), ["pid", "memory_mib"])
    own = os.getpid() if pid is None else pid
    usage = [row["memory_mib"] for row in rows if row["pid"] == own and row["memory_mib"] is not None]
    return int(sum(usage) * 2**20) if usage else None


def parse(text: str, names: list[str]) -> list[dict[str, Any]]:
    """Rows of ``--format=csv,noheader,nounits`` under ``names``; other lines are skipped.

    A value in brackets, such as ``[N/A]``, is not reported by the GPU.
    """
    rows = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(names):
            rows.append({name: _value(name, value) for name, value in zip(names, values)})
    return rows


def option_value(options: dict[str, Any], name: str, known: tuple[Any, ...]) -> Any:
    """The value of an option, one of ``known``; the first is the default.

    Raises:
        AgentError: kind ``runtime``: the value is not one of ``known``.
    """
    value = options.get(name, known[0])
    if not any(value == each and type(value) is type(each) for each in known):
        choices = ", ".join(str(each).lower() for each in known)
        raise AgentError("runtime", f"option {name!r} is {value!r}; choose from: {choices}")
    return value


def without_tf32() -> None:
    """Forbid NVIDIA libraries to round float32 to TensorFloat-32; call before any of them is loaded."""
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def _query(argument: str) -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, argument, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # If the driver cannot be reached, the error is on standard output.
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number
