"""ExecuTorch programs (``.pte``) through its Python bindings."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import tempfile
import time
from collections.abc import Callable
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

ERRORS = {
    0x01: "internal error",
    0x02: "invalid state",
    0x10: "not supported",
    0x11: "not implemented",
    0x12: "invalid argument",
    0x13: "invalid type",
    0x14: "the runtime lacks an operator",
    0x20: "resource not found",
    0x21: "out of memory",
    0x22: "resource not accessible",
    0x23: "invalid program",
    0x24: "invalid external data",
    0x25: "out of resources",
    0x30: "incompatible delegate",
    0x31: "the delegate is out of memory",
    0x32: "invalid handle of a delegate",
}
"""Names of errors, from ``runtime/core/error.h`` of ExecuTorch."""
CODE = re.compile(r"0x:?([0-9a-fA-F]+)")
CAUSES = (
    r"(?:Missing operator: \[\d+\]|in operator) *([\w:.]+)",
    r"Failed to (?:create|define) (?:the )?(.+?) (?:node|operator)\b",
    r"Init failed for backend (\w+)",
)
"""Patterns of the runtime's log that name what failed; its exceptions contain a number only."""


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
        self.program = _named(lambda: bindings._load_program(str(path), program_verification=check))
        names = [self.program.get_method_name(index) for index in range(self.program.num_methods())]
        if METHOD not in names:
            known = ", ".join(sorted(names)) or "none"
            raise AgentError("model", f"{path.name} has no method {METHOD!r}; it has: {known}")
        self.method = _named(lambda: self.program.load_method(METHOD))
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
        try:
            results = self.method(tensors)
        except RuntimeError:
            results = _named(lambda: self.method(tensors))
        seconds = time.perf_counter() - start
        return as_arrays(results), seconds


def _spec(name: str, meta: Any) -> Spec:
    dtype = DTYPES.get(int(meta.dtype()), f"scalar type {meta.dtype()}")
    return Spec(name, tuple(int(size) for size in meta.sizes()), dtype)


def _named(action: Callable[[], Any]) -> Any:
    """The result of an action of the runtime; a failure names the operator or delegate, not a number."""
    with tempfile.TemporaryFile() as log:
        before = os.dup(2)
        os.dup2(log.fileno(), 2)
        lines = io.StringIO()
        try:
            # The bindings write to Python's stream, the runtime to that of the process.
            with contextlib.redirect_stderr(lines):
                return action()
        except RuntimeError as error:
            log.seek(0)
            text = lines.getvalue() + log.read().decode("utf-8", "replace")
            raise AgentError("model", describe(str(error), text)) from error
        finally:
            os.dup2(before, 2)
            os.close(before)


def describe(message: str, log: str) -> str:
    """A failure of the runtime in words, from its exception and its log."""
    causes = [match[1] for pattern in CAUSES for match in re.finditer(pattern, log)]
    where = f" in {causes[0]}" if causes else ""
    code = CODE.search(message)
    if code is None:
        return f"ExecuTorch cannot run the program{where}: {message}"
    known = ERRORS.get(int(code[1], 16), "unknown error")
    return f"ExecuTorch cannot run the program: {known}{where}"
