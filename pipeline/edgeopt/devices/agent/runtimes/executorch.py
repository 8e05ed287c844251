"""ExecuTorch programs (``.pte``) through its Python bindings."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError
from edgeopt_agent.session import ModelSession, Spec
from edgeopt_agent.torchside import as_arrays, as_tensors, limit_threads

BINDINGS = "executorch.extension.pybindings._portable_lib"
"""The module that ``executorch.runtime`` wraps; importing the wrapper imports the compiler, too: 6 s."""

METHOD = "forward"

DTYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}
"""ScalarType values of the ExecuTorch program format."""


class Session(ModelSession):
    """The method ``forward`` of a program; only its execution is timed."""

    requires = ("executorch", "torch")

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        limit_threads(threads)
        importlib.import_module("executorch.kernels.quantized")
        importlib.import_module(BINDINGS)._unsafe_reset_threadpool(threads)

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        bindings = importlib.import_module(BINDINGS)
        check = bindings.Verification.InternalConsistency
        self.program = bindings._load_program(str(path), program_verification=check)
        names = [self.program.get_method_name(index) for index in range(self.program.num_methods())]
        if METHOD not in names:
            known = ", ".join(sorted(names)) or "none"
            raise AgentError("model", f"{path.name} has no method {METHOD!r}; it has: {known}")
        self.method = self.program.load_method(METHOD)
        meta = self.method.method_meta()
        self.inputs = [
            _spec(f"input_{index}", meta.input_tensor_meta(index)) for index in range(meta.num_inputs())
        ]
        self.outputs = [
            _spec(f"output_{index}", meta.output_tensor_meta(index)) for index in range(meta.num_outputs())
        ]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        tensors = as_tensors(arrays)
        start = time.perf_counter()
        results = self.method(tensors)
        seconds = time.perf_counter() - start
        return as_arrays(results), seconds


def _spec(name: str, meta: Any) -> Spec:
    dtype = DTYPES.get(int(meta.dtype()), f"scalar type {meta.dtype()}")
    return Spec(name, tuple(int(size) for size in meta.sizes()), dtype)
