"""The runtime, which travels to the device: NumPy alone, in one file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

try:
    from edgeopt_agent.session import ModelSession, Spec
except ImportError:  # beside edgeopt, where the stage asks which operators there are
    ModelSession, Spec = object, None  # type: ignore[assignment,misc]


def convolve(x: Any, weights: Any, bias: Any = None, **options: Any) -> Any:
    groups, strides = options.get("group", 1), options.get("strides", [1, 1])
    top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    parts = zip(np.split(windows, groups, 1), np.split(weights, groups, 0))  # noqa: B905 - Python 3.8
    y = np.concatenate([np.einsum("bchwij,ocij->bohw", a, b, optimize=True) for a, b in parts], 1)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


OPERATORS: dict[str, Any] = {
    "Add": lambda a, b: a + b,
    "Conv": convolve,
    "Gemm": lambda a, b, c=0.0, transA=0, transB=0: (a.T if transA else a) @ (b.T if transB else b) + c,
    "GlobalAveragePool": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "Mul": lambda a, b: a * b,
    "Relu": lambda x: np.maximum(x, 0),
    "Reshape": lambda x, shape, **_: x.reshape([int(size) for size in shape]),
    "Softmax": softmax,
    "Squeeze": lambda x, axes: np.squeeze(x, tuple(int(axis) for axis in axes)),
}


class Session(ModelSession):
    """A ``.layers`` file, with its ``.weights`` beside it."""

    requires = ("numpy",)

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        model = json.loads(path.read_text("utf-8"))
        numbers = np.fromfile(path.with_suffix(".weights"), "<f4")
        self.layers, self.weights = model["layers"], {}
        for name, shape in model["weights"]:
            size = int(np.prod(shape, dtype=int))
            self.weights[name], numbers = numbers[:size].reshape(shape), numbers[size:]
        self.inputs = [Spec(name, tuple(shape), "float32") for name, shape in model["inputs"]]
        self.outputs = [Spec(name, tuple(shape), "float32") for name, shape in model["outputs"]]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        """Run one batch; outputs, and the seconds that it took."""
        started = time.perf_counter()
        given = zip(self.inputs, arrays)  # noqa: B905 - Python 3.8
        values = dict(self.weights, **{spec.name: array for spec, array in given})
        for layer in self.layers:
            given = [values[name] for name in layer["inputs"]]
            values[layer["output"]] = OPERATORS[layer["kind"]](*given, **layer["options"])
        outputs = [values[spec.name].astype(np.float32) for spec in self.outputs]
        return outputs, time.perf_counter() - started
