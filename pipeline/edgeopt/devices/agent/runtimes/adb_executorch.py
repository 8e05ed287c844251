"""ExecuTorch on an Android device, by its ``executor_runner``.

Flags and log: ``examples/portable/executor_runner/executor_runner.cpp`` of ExecuTorch.
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
"""Scalar types as the program stores them."""
NUMBER = r"([-+.\deE]+|nan|inf)"
TOTAL = re.compile(rf"Model executed successfully (\d+) time\(s\) in {NUMBER} ms")
ITERATION = re.compile(rf"Iteration \d+ of \d+: {NUMBER} ms")
LOADED = re.compile(rf"Model loaded in {NUMBER} ms")


class Session(PhoneSession):
    """A ``.pte`` file, on inputs of ones.

    Options: ``runner``, where the program lies on the device; ``adb`` and ``serial``, the client and
    which device; ``runs`` and ``warmup_runs``; ``flags``, further flags of the program; ``seconds``, the
    time limit.
    """

    known_options = ("runner", "adb", "serial", "runs", "warmup_runs", "flags", "seconds")
    program = "runner"

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.further = [str(flag) for flag in options.get("flags") or ()]
        self.first_runs_count = False
        super().__init__(path, threads, options)
        try:
            self.inputs = _inputs(path)
        except (ImportError, RuntimeError):
            return  # this machine need not be able to run it

    def default_tool(self) -> str:
        return "executor_runner"

    def flags(self, model: str) -> list[str]:
        return [
            f"--model_path={model}",
            f"--num_executions={self.runs + self.warmup_runs}",
            f"--cpu_threads={self.threads}",
            *self.further,
        ]

    def read(self, text: str) -> dict[str, tuple[float, str]]:
        """Latency in ms, without the first runs where the program tells every run; loading in ms if told.

        Raises:
            AgentError: kind ``runtime``, when it is not what the program logs.
        """
        total = TOTAL.search(text)
        if total is None or int(total[1]) < 1:
            raise AgentError(
                "runtime",
                f"executor_runner logged no time on {self.phone.serial}: build it with "
                "-DEXECUTORCH_ENABLE_LOGGING=ON and -DEXECUTORCH_PAL_DEFAULT=posix, "
                "or its log is left out or goes to logcat",
            )
        try:
            times = [float(told) for told in ITERATION.findall(text)]
            loaded = LOADED.search(text)
            found = {"load_ms": (float(loaded[1]), "ms")} if loaded is not None else {}
            mean = float(total[2]) / int(total[1])
        except ValueError as error:
            raise AgentError("runtime", f"executor_runner logged rubbish on the device: {error}") from error
        self.first_runs_count = len(times) != int(total[1]) or len(times) <= self.warmup_runs
        if self.first_runs_count:
            return finite({"latency_mean_ms": (mean, "ms"), **found}, "executor_runner")
        counted = times[self.warmup_runs :]
        figures = {
            "latency_mean_ms": statistics.fmean(counted),
            "latency_min_ms": min(counted),
            "latency_max_ms": max(counted),
            "latency_std_ms": statistics.pstdev(counted),
            "latency_p50_ms": statistics.median(counted),
        }
        return finite(
            {**{name: (value, "ms") for name, value in figures.items()}, **found}, "executor_runner"
        )

    def notes(self) -> list[str]:
        """What must stand beside the figures."""
        found = super().notes()
        if self.first_runs_count:
            found.append("executor_runner told the sum of all runs only: the mean includes the first ones")
        return found


def _inputs(path: Path) -> list[Spec]:
    """What a program takes, as the bindings of this machine tell."""
    program = importlib.import_module(BINDINGS)._load_program(str(path))
    about = program.method_meta(METHOD)
    metas = [about.input_tensor_meta(index) for index in range(about.num_inputs())]
    return [
        Spec(
            f"input_{index}",
            tuple(int(size) for size in meta.sizes()),
            DTYPES.get(int(meta.dtype()), f"scalar type {meta.dtype()}"),
        )
        for index, meta in enumerate(metas)
    ]
