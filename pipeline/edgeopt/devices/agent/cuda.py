"""What the runtimes on NVIDIA GPUs share: what ``nvidia-smi`` tells, and how their options are checked.

Nothing but the standard library is imported. The fields are those of ``nvidia-smi --help-query-gpu`` that
every driver knows: one unknown field makes it refuse the whole question.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from edgeopt_agent.failure import AgentError

PROGRAM = "nvidia-smi"
SECONDS = 20.0
"""The first question after a start takes seconds where the driver is not kept loaded."""
LASTING = {"name": "name", "driver_version": "driver", "memory.total": "memory_mib"}
PASSING = {
    "clocks.sm": "clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
}
TEXTS = ("name", "driver")


def gpus() -> list[dict[str, Any]]:
    """Name, driver and memory of each GPU; an empty list where there is none, or no ``nvidia-smi``."""
    return parse(_ask("--query-gpu=" + ",".join(LASTING)), list(LASTING.values()))


def gpu_states() -> list[dict[str, Any]]:
    """Clocks, temperature and power of each GPU at this moment; ``None`` for what it does not tell."""
    return parse(_ask("--query-gpu=" + ",".join(PASSING)), list(PASSING.values()))


def gpu_memory_bytes(pid: int | None = None) -> int | None:
    """GPU memory that a process holds, on all GPUs together; ``None`` if the driver does not list it.

    In a container the driver may know the process under another number, and lists nothing then.
    """
    rows = parse(_ask("--query-compute-apps=pid,used_memory"), ["pid", "memory_mib"])
    own = os.getpid() if pid is None else pid
    held = [row["memory_mib"] for row in rows if row["pid"] == own and row["memory_mib"] is not None]
    return int(sum(held) * 2**20) if held else None


def parse(text: str, names: list[str]) -> list[dict[str, Any]]:
    """Rows of ``--format=csv,noheader,nounits`` under ``names``; lines of another form are left out.

    What stands in brackets, such as ``[N/A]``, is a value that the GPU does not tell.
    """
    rows = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(names):
            rows.append({name: _value(name, value) for name, value in zip(names, values)})
    return rows


def chosen(options: dict[str, Any], name: str, known: tuple[Any, ...]) -> Any:
    """The value of an option that has few; the first is the default.

    Raises:
        AgentError: kind ``runtime``, when it is none of them.
    """
    value = options.get(name, known[0])
    if not any(value == one and type(value) is type(one) for one in known):
        told = ", ".join(str(one).lower() for one in known)
        raise AgentError("runtime", f"option {name!r} is {value!r}; it can be: {told}")
    return value


def without_tf32() -> None:
    """Let no NVIDIA library round float32 to TensorFloat-32; to be called before any of them is loaded."""
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def _ask(question: str) -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        return ""
    try:
        answer = subprocess.run(
            [program, question, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # A driver that cannot be reached says so on standard output.
    return answer.stdout.decode("utf-8", "replace") if answer.returncode == 0 else ""


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number
