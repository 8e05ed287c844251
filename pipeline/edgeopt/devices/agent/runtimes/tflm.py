"""TensorFlow Lite Micro (``tflite-micro``): the kernels and the memory planner of microcontrollers.

Its reference kernels answer as on a microcontroller, and it records what it would need of the arena there.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import Layer, ModelSession, Spec

ARENA = 64 << 20
"""Room for the arena, in bytes; pages that the model does not need are never touched."""
PER_MODEL_BYTE = 10
ALLOCATION = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
SOURCE = re.compile(r"^\S+\.cc(:\d+)?\s+")
NAMES = {"total": "arena_bytes", "head": "arena_head_bytes", "tail": "arena_tail_bytes"}


class Session(ModelSession):
    """A ``.tflite`` file in TFLM's recording interpreter; only its ``invoke`` is timed."""

    requires = ("tflite-micro",)

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        from tflite_micro.python.tflite_micro import runtime  # noqa: F401

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        from tflite_micro.python.tflite_micro import runtime

        content = path.read_bytes()
        names, results = _names(content)
        arena = max(ARENA, PER_MODEL_BYTE * len(content))
        self.content, self.arena = content, arena
        self.preserving: Any = None
        self.model = _told(lambda: runtime.Interpreter.from_bytes(content, arena_size=arena))
        self.inputs = [_spec(name, self.model.get_input_details(index)) for index, name in enumerate(names)]
        self.outputs = [
            _spec(name, self.model.get_output_details(index)) for index, name in enumerate(results)
        ]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        for index, array in enumerate(arrays):
            self.model.set_input(array, index)
        start = time.perf_counter()
        try:
            self.model.invoke()
        except RuntimeError:
            _told(self.model.invoke)
            raise
        seconds = time.perf_counter() - start
        assert self.outputs is not None
        return [np.array(self.model.get_output(index)) for index in range(len(self.outputs))], seconds

    def measurements(self) -> dict[str, Measured]:
        """Bytes of the arena as TFLM records them: tensors (head), and what lives as long as the model."""
        found = ALLOCATION.findall(_printed(self.model.print_allocations))
        return {NAMES[part]: {"value": int(count), "unit": "bytes"} for part, count in found}

    def layers(self, arrays: list[Any]) -> list[Layer] | None:
        """Every operator's outputs, from a second interpreter whose arena keeps them all."""
        from tflite_micro.python.tflite_micro import runtime
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

        if self.preserving is None:
            keeping = runtime.InterpreterConfig.kPreserveAllTensors
            self.preserving = runtime.Interpreter.from_bytes(
                self.content, arena_size=self.arena, intrepreter_config=keeping
            )
        for index, array in enumerate(arrays):
            self.preserving.set_input(array, index)
        self.preserving.invoke()
        model = schema.Model.GetRootAs(self.content, 0)
        graph = model.Subgraphs(0)
        kinds = {
            number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)
        }
        found = []
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
            for tensor in map(int, operator.OutputsAsNumpy()):
                name = str((graph.Tensors(tensor).Name() or b"").decode("utf-8", "replace"))
                values = np.array(self.preserving.GetTensor(tensor, 0)["tensor_data"])
                found.append(Layer(name, kind, None, values))
        return found


def _names(content: bytes) -> tuple[list[str], list[str]]:
    """Names of the inputs and of the outputs; the interpreter itself does not tell how many there are."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise AgentError("model", "this is not a TFLite model: the identifier TFL3 is missing")
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)

    def name(tensor: int) -> str:
        return str((graph.Tensors(tensor).Name() or b"").decode("utf-8", "replace"))

    return (
        [name(graph.Inputs(index)) for index in range(graph.InputsLength())],
        [name(graph.Outputs(index)) for index in range(graph.OutputsLength())],
    )


def _spec(name: str, detail: dict[str, Any]) -> Spec:
    scales = detail["quantization_parameters"]["scales"]
    points = detail["quantization_parameters"]["zero_points"]
    return Spec(
        name,
        tuple(int(size) for size in detail["shape"]),
        np.dtype(detail["dtype"]).name,
        float(scales[0]) if len(scales) == 1 and scales[0] else None,
        int(points[0]) if len(points) == 1 else None,
    )


def _told(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or its failure with TFLM's reason.

    The reason goes to the standard error of the process alone. Nothing is redirected the first time, so that
    the last words of an interpreter that aborts reach whoever reads there; a failure is made once more.
    """
    try:
        return call()
    except RuntimeError as error:
        reasons: list[str] = []

        def again() -> None:
            try:
                call()
            except RuntimeError as second:
                reasons.append(str(second))

        lines = [line.strip().rstrip(".") for line in _printed(again).splitlines() if line.strip()]
        text = "; ".join(SOURCE.sub("", line) for line in lines[-2:])
        raise AgentError("model", f"TFLM cannot run it: {text or error}") from error


def _printed(call: Callable[[], Any]) -> str:
    """What native code writes to standard error during ``call``."""
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
