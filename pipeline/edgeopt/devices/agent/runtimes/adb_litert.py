"""LiteRT on an Android device, measured by its ``benchmark_model``.

Flags and output: https://developers.google.com/edge/litert/models/measurement, and the sources
``tensorflow/lite/tools/benchmark/benchmark_model.cc`` and ``litert/tools/benchmark_litert_model.h``.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from edgeopt_agent.adb import PhoneSession, finite, positive
from edgeopt_agent.failure import AgentError
from edgeopt_agent.tflite import TfliteSession

NUMBER = r"([-+.\deE]+|nan|inf)"
STATISTICS = re.compile(r"\bcount=(\d+)\b(.*)")
FIGURE = re.compile(rf"\b(curr|min|max|avg|std|median)={NUMBER}")
INIT = re.compile(rf"Inference timings in us: Init: {NUMBER},")
INIT_MS = re.compile(rf"Model initialization:\s*{NUMBER} ms")
MEMORY = re.compile(rf"Memory footprint delta from the start of the tool \(MB\): init=\S+ overall={NUMBER}")
MEMORY_MB = re.compile(rf"Overall footprint:\s*{NUMBER} MB")
MIB = 2**20
NAMES = {
    "avg": "latency_mean_ms",
    "min": "latency_min_ms",
    "max": "latency_max_ms",
    "std": "latency_std_ms",
    "median": "latency_p50_ms",
}


class HostInterpreter(TfliteSession):
    """The interpreter on the host, from which inputs and outputs are read."""

    @staticmethod
    def interpreter() -> Any:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter


class Session(PhoneSession):
    """A ``.tflite`` file.

    Options: ``benchmark_model``, the path of the program on the device; ``adb``, the adb client, and
    ``serial``, the device; ``runs``, ``min_seconds`` and ``warmup_runs``, the minimum to measure; ``flags``,
    additional flags of the program, such as ``["--use_gpu=true"]``; ``seconds``, the time limit.
    """

    known_options = (
        "benchmark_model",
        "adb",
        "serial",
        "runs",
        "min_seconds",
        "warmup_runs",
        "flags",
        "seconds",
    )
    program = "benchmark_model"

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.min_seconds = positive(options, "min_seconds", 2.0, 0)
        self.extra_flags = [str(flag) for flag in options.get("flags") or ()]
        super().__init__(path, threads, options)
        try:
            interpreter = HostInterpreter(path, 1, {})
        except (ImportError, RuntimeError, ValueError):
            return  # the host does not need LiteRT: inputs and outputs stay unknown
        self.inputs, self.outputs = interpreter.inputs, interpreter.outputs

    def default_tool(self) -> str:
        return "benchmark_model"

    def flags(self, model: str) -> list[str]:
        return [
            f"--graph={model}",
            f"--num_threads={self.threads}",
            f"--num_runs={self.runs}",
            f"--min_secs={self.min_seconds:g}",
            f"--warmup_runs={self.warmup_runs}",
            *self.extra_flags,
        ]

    def read(self, text: str) -> dict[str, tuple[float, str]]:
        """Parse the output: latency after the warm-up and load time in ms, growth of peak memory in bytes.

        Raises:
            AgentError: kind ``runtime``: the output contains no valid timings.
        """
        # Statistics of the warm-up come first, those of the measurement last. Times are in microseconds.
        phases = STATISTICS.findall(text)
        init, init_ms = INIT.search(text), INIT_MS.search(text)
        if not phases or (init is None and init_ms is None):
            raise AgentError("runtime", f"benchmark_model printed no timings on {self.phone.serial}")
        figures = dict(FIGURE.findall(phases[-1][1]))
        if "avg" not in figures and "curr" in figures:  # if all runs took the same time, only that is printed
            same = figures["curr"]
            figures = {"avg": same, "min": same, "max": same, "std": "0"}
        if int(phases[-1][0]) < 1 or not {"avg", "min", "max"} <= set(figures):
            raise AgentError("runtime", f"benchmark_model completed no run on {self.phone.serial}")
        try:
            values = {
                name: (float(figures[word]) / 1e3, "ms") for word, name in NAMES.items() if word in figures
            }
            if init is not None:
                values["load_ms"] = float(init[1]) / 1e3, "ms"
            elif init_ms is not None:
                values["load_ms"] = float(init_ms[1]), "ms"
            memory = MEMORY.search(text) or MEMORY_MB.search(text)
            if memory is not None:
                values["peak_memory_bytes"] = float(memory[1]) * MIB, "bytes"
        except ValueError as error:
            raise AgentError("runtime", f"benchmark_model printed a malformed number: {error}") from error
        return finite(values, "benchmark_model")
