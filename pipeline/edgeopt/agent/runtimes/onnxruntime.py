"""ONNX Runtime on the CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgeopt_agent.session import ModelSession, Spec

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
}


class Session(ModelSession):
    """A ``.onnx`` file; only the run itself is timed, with inputs and outputs bound beforehand.

    Option ``optimize``: false turns every graph optimization off, so that quantize and dequantize
    nodes are carried out as they are written, in float.
    """

    requires = ("onnxruntime",)
    known_options = ("optimize",)

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        if not options.get("optimize", True):
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.model = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.inputs = [_spec(value) for value in self.model.get_inputs()]
        self.outputs = [_spec(value) for value in self.model.get_outputs()]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
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
