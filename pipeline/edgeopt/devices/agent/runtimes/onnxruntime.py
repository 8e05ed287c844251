"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import refuse
from edgeopt_agent.session import ModelSession, Spec

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
}

PROFILED_RUNS = 20
KERNEL = "_kernel_time"


class Session(ModelSession):
    """A ``.onnx`` file; only the run is timed, with inputs and outputs bound in advance (I/O binding).

    Option ``optimize``: ``false`` disables all graph optimizations, so that QuantizeLinear and
    DequantizeLinear nodes run as written, in float.
    """

    requires = ("onnxruntime",)
    known_options = ("optimize",)

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # otherwise it sends usage data of every session
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        from edgeopt_untrusted import onnx_files

        refuse(path.name, onnx_files.findings(path), "save it as a single file")
        self.path, self.threads, self.options = path, threads, options
        self.last_inputs: list[Any] = []
        self.model = self._load(profile_into=None)
        self.inputs = [_spec(value) for value in self.model.get_inputs()]
        self.outputs = [_spec(value) for value in self.model.get_outputs()]

    def _load(self, profile_into: str | None) -> Any:
        import onnxruntime

        options, threads = self.options, self.threads
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        if not options.get("optimize", True):
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile_into is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile_into
        return onnxruntime.InferenceSession(str(self.path), settings, providers=["CPUExecutionProvider"])

    def details(self) -> list[dict[str, Any]]:
        """Median time of every operator in execution order, from ONNX Runtime's profiler.

        Uses a separate session: profiling slows the runs down.
        """
        with tempfile.TemporaryDirectory() as folder:
            model = self._load(profile_into=os.path.join(folder, "profile"))
            feeds = {spec.name: array for spec, array in zip(self.inputs or (), self.last_inputs)}
            for _ in range(PROFILED_RUNS):
                model.run(None, feeds)
            events = json.loads(Path(model.end_profiling()).read_text("utf-8"))
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
                key = event["name"][: -len(KERNEL)], event["args"]["op_name"]
                times.setdefault(key, []).append(event["dur"] / 1e3)
        medians = {key: statistics.median(values) for key, values in times.items()}
        total = sum(medians.values()) or 1.0
        return [
            {"layer": name, "operator": operator, "ms": round(value, 6), "share": round(value / total, 4)}
            for (name, operator), value in medians.items()
        ]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        self.last_inputs = arrays
        binding = self.model.io_binding()
        for spec, array in zip(self.inputs or (), arrays):
            binding.bind_cpu_input(spec.name, array)
        for spec in self.outputs or ():
            binding.bind_output(spec.name, "cpu")
        start = time.perf_counter()
        self.model.run_with_iobinding(binding)
        seconds = time.perf_counter() - start
        return binding.copy_outputs_to_cpu(), seconds


def _spec(value: Any) -> Spec:
    dtype = DTYPES.get(value.type) or value.type.replace("tensor(", "").replace(")", "")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return Spec(value.name, shape, dtype)
