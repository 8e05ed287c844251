"""ExecuTorch on an Android device, measured by its ``executor_runner``.

Flags and log format: ``examples/portable/executor_runner/executor_runner.cpp`` of ExecuTorch.
"""

from __future__ import annotations

import importlib
import re
import statistics
from pathlib import Path
from typing import Any

from edgeopt_agent.adb import PhoneSession, finite
from edgeopt_agent.failure import AgentError
from edgeopt_agent.session import Spec

BINDINGS = "executorch.extension.pybindings._portable_lib"
METHOD = "forward"
DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}
"""ScalarType values of the ExecuTorch program format."""
NUMBER = r"([-+.\deE]+|nan|inf)"
TOTAL = re.compile(rf"Model executed successfully (\d+) time\(s\) in {NUMBER} ms")
ITERATION = re.compile(rf"Iteration \d+ of \d+: {NUMBER} ms")
LOADED = re.compile(rf"Model loaded in {NUMBER} ms")


class Session(PhoneSession):
    """A ``.pte`` file, run on inputs filled with ones.

    Options: ``runner``, the path of the program on the device; ``adb``, the adb client, and ``serial``, the
    device; ``runs`` and ``warmup_runs``; ``flags``, additional flags of the program; ``seconds``, the time
    limit.
    """

    known_options = ("runner", "adb", "serial", "runs", "warmup_runs", "flags", "seconds")
    program = "runner"

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.extra_flags = [str(flag) for flag in options.get("flags") or ()]
        self.mean_includes_warmup = False
        super().__init__(path, threads, options)
        try:
            self.inputs = _inputs(path)
        except (ImportError, RuntimeError):
            return  # the host does not need ExecuTorch: its inputs stay unknown

    def default_tool(self) -> str:
        return "executor_runner"

    def flags(self, model: str) -> list[str]:
        return [
            f"--model_path={model}",
            f"--num_executions={self.runs + self.warmup_runs}",
            f"--cpu_threads={self.threads}",
            *self.extra_flags,
        ]

    def read(self, text: str) -> dict[str, tuple[float, str]]:
        """Parse the log: latency and load time, in ms.

        Warm-up runs are excluded if the program logs every run; the load time is optional.

        Raises:
            AgentError: kind ``runtime``: the log contains no valid timings.
        """
        total = TOTAL.search(text)
        if total is None or int(total[1]) < 1:
            raise AgentError(
                "runtime",
                f"executor_runner logged no timings on {self.phone.serial}: build it with "
                "-DEXECUTORCH_ENABLE_LOGGING=ON and -DEXECUTORCH_PAL_DEFAULT=posix, "
                "otherwise logging is disabled or goes to logcat",
            )
        try:
            times = [float(milliseconds) for milliseconds in ITERATION.findall(text)]
            loaded = LOADED.search(text)
            load = {"load_ms": (float(loaded[1]), "ms")} if loaded is not None else {}
            mean = float(total[2]) / int(total[1])
        except ValueError as error:
            raise AgentError("runtime", f"executor_runner logged a malformed number: {error}") from error
        self.mean_includes_warmup = len(times) != int(total[1]) or len(times) <= self.warmup_runs
        if self.mean_includes_warmup:
            return finite({"latency_mean_ms": (mean, "ms"), **load}, "executor_runner")
        timed = times[self.warmup_runs :]
        latency = {
            "latency_mean_ms": statistics.fmean(timed),
            "latency_min_ms": min(timed),
            "latency_max_ms": max(timed),
            "latency_std_ms": statistics.pstdev(timed),
            "latency_p50_ms": statistics.median(timed),
        }
        return finite({**{name: (value, "ms") for name, value in latency.items()}, **load}, "executor_runner")

    def notes(self) -> list[str]:
        """Caveats of the measurements."""
        notes = super().notes()
        if self.mean_includes_warmup:
            notes.append("executor_runner logged only the total time: the mean includes the warm-up runs")
        return notes


def _inputs(path: Path) -> list[Spec]:
    """The inputs of a program, read with the Python bindings on the host."""
    program = importlib.import_module(BINDINGS)._load_program(str(path))
    method = program.method_meta(METHOD)
    metas = [method.input_tensor_meta(index) for index in range(method.num_inputs())]
    return [
        Spec(
            f"input_{index}",
            tuple(int(size) for size in meta.sizes()),
            DTYPES.get(int(meta.dtype()), f"scalar type {meta.dtype()}"),
        )
        for index, meta in enumerate(metas)
    ]
