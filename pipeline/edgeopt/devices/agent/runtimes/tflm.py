"""TensorFlow Lite Micro (``tflite-micro``): the kernels and the memory planner of microcontrollers.

Its reference kernels give the same outputs as on a microcontroller, and its recording allocator reports the
arena size required there.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import Layer, ModelSession, Spec

ARENA = 64 << 20
"""Bytes reserved for the arena; pages that the model does not use are never allocated."""
PER_MODEL_BYTE = 10
ALLOCATION = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
SOURCE = re.compile(r"^\S+\.cc(:\d+)?\s+")
NAMES = {"total": "arena_bytes", "head": "arena_head_bytes", "tail": "arena_tail_bytes"}


class Session(ModelSession):
    """A ``.tflite`` file in TFLM's recording interpreter; only ``invoke`` is timed."""

    requires = ("tflite-micro",)

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        from tflite_micro.python.tflite_micro import runtime  # noqa: F401

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        from tflite_micro.python.tflite_micro import runtime

        content = path.read_bytes()
        input_names, output_names = _names(content)
        arena = max(ARENA, PER_MODEL_BYTE * len(content))
        self.content, self.arena = content, arena
        self.preserving: Any = None
        self.model = _with_reason(lambda: runtime.Interpreter.from_bytes(content, arena_size=arena))
        self.inputs = [
            _spec(name, self.model.get_input_details(index)) for index, name in enumerate(input_names)
        ]
        self.outputs = [
            _spec(name, self.model.get_output_details(index)) for index, name in enumerate(output_names)
        ]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import numpy as np

        for index, array in enumerate(arrays):
            self.model.set_input(array, index)
        start = time.perf_counter()
        try:
            self.model.invoke()
        except RuntimeError:
            _with_reason(self.model.invoke)
            raise
        seconds = time.perf_counter() - start
        assert self.outputs is not None
        return [np.array(self.model.get_output(index)) for index in range(len(self.outputs))], seconds

    def measurements(self) -> dict[str, Measured]:
        """Arena size recorded by TFLM: total, head (non-persistent tensors) and tail (persistent data)."""
        allocations = ALLOCATION.findall(_captured_stderr(self.model.print_allocations))
        return {NAMES[part]: {"value": int(count), "unit": "bytes"} for part, count in allocations}

    def layers(self, arrays: list[Any]) -> list[Layer] | None:
        """Every operator's outputs, from a second interpreter that preserves all tensors."""
        import numpy as np
        from tflite_micro.python.tflite_micro import runtime
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

        if self.preserving is None:
            config = runtime.InterpreterConfig.kPreserveAllTensors
            self.preserving = runtime.Interpreter.from_bytes(
                self.content, arena_size=self.arena, intrepreter_config=config
            )
        for index, array in enumerate(arrays):
            self.preserving.set_input(array, index)
        self.preserving.invoke()
        model = schema.Model.GetRootAs(self.content, 0)
        graph = model.Subgraphs(0)
        kinds = {
            number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)
        }
        layers = []
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
            for tensor in map(int, operator.OutputsAsNumpy()):
                name = str((graph.Tensors(tensor).Name() or b"").decode("utf-8", "replace"))
                values = np.array(self.preserving.GetTensor(tensor, 0)["tensor_data"])
                layers.append(Layer(name, kind, None, values))
        return layers


def _names(content: bytes) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs; the interpreter does not report their number."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise AgentError("model", "not a TFLite model: the file identifier TFL3 is missing")
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)

    def name(tensor: int) -> str:
        return str((graph.Tensors(tensor).Name() or b"").decode("utf-8", "replace"))

    return (
        [name(graph.Inputs(index)) for index in range(graph.InputsLength())],
        [name(graph.Outputs(index)) for index in range(graph.OutputsLength())],
    )


def _spec(name: str, detail: dict[str, Any]) -> Spec:
    import numpy as np

    scales = detail["quantization_parameters"]["scales"]
    points = detail["quantization_parameters"]["zero_points"]
    return Spec(
        name,
        tuple(int(size) for size in detail["shape"]),
        np.dtype(detail["dtype"]).name,
        float(scales[0]) if len(scales) == 1 and scales[0] else None,
        int(points[0]) if len(points) == 1 else None,
    )


def _with_reason(call: Callable[[], Any]) -> Any:
    """Return the result of ``call``; add TFLM's reason to its error.

    TFLM writes the reason only to stderr. The first call is not redirected, so that the message of an
    interpreter that aborts the process is not lost; a failed call is repeated to capture the reason.
    """
    try:
        return call()
    except RuntimeError as error:
        reasons: list[str] = []

        def repeat() -> None:
            try:
                call()
            except RuntimeError as second:
                reasons.append(str(second))

        lines = [line.strip().rstrip(".") for line in _captured_stderr(repeat).splitlines() if line.strip()]
        text = "; ".join(SOURCE.sub("", line) for line in lines[-2:])
        raise AgentError("model", f"TFLM cannot run it: {text or error}") from error


def _captured_stderr(call: Callable[[], Any]) -> str:
    """The text that native code writes to stderr during ``call``."""
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        return file.read().decode("utf-8", "replace")
