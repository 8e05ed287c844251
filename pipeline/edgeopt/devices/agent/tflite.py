"""The TensorFlow Lite interpreter, which several distributions provide under different names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgeopt_agent.session import Layer, ModelSession, Spec

VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
"""Operators that leave the values of their input as they are."""


class TfliteSession(ModelSession):
    """A ``.tflite`` file; only the interpreter's ``invoke`` is timed."""

    @staticmethod
    def interpreter() -> Any:
        """The interpreter class of the distribution."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        cls.interpreter()

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.path, self.threads = path, threads
        self.preserving: Any = None
        self.model = self.interpreter()(model_path=str(path), num_threads=threads)
        self.model.allocate_tensors()
        details = self.model.get_input_details()
        self.inputs = [_spec(detail) for detail in details]
        self.shapes = [tuple(int(size) for size in detail["shape"]) for detail in details]
        self.outputs = [_spec(detail) for detail in self.model.get_output_details()]
        self.input_indices = [detail["index"] for detail in details]
        self.output_indices = [detail["index"] for detail in self.model.get_output_details()]

    @property
    def max_batch(self) -> int | None:
        # Many files declare a dynamic batch size, but memory and delegates are planned for the stored shape:
        # that shape is measured.
        return min((shape[0] for shape in self.shapes if shape), default=1)

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        shapes = [array.shape for array in arrays]
        if shapes != self.shapes:
            for index, shape in zip(self.input_indices, shapes):
                self.model.resize_tensor_input(index, shape)
            self.model.allocate_tensors()
            self.shapes = shapes
        for index, array in zip(self.input_indices, arrays):
            self.model.set_tensor(index, array)
        start = time.perf_counter()
        self.model.invoke()
        seconds = time.perf_counter() - start
        return [self.model.get_tensor(index) for index in self.output_indices], seconds

    def output_scales(self) -> list[float | None]:
        details = {detail["index"]: detail for detail in self.model.get_tensor_details()}
        dequantized = {}
        for operator in self.model._get_ops_details():
            if operator["op_name"] == "DEQUANTIZE" and operator["inputs"][0] in details:
                dequantized[operator["outputs"][0]] = _spec(details[operator["inputs"][0]]).scale
        return [
            spec.scale or dequantized.get(index)
            for spec, index in zip(self.outputs or (), self.output_indices)
        ]

    def layers(self, arrays: list[Any]) -> list[Layer] | None:
        """Every operator's outputs, from a second interpreter that preserves all tensors.

        This costs memory and may select other kernels: LiteRT 2 still delegates to XNNPACK,
        tflite-runtime 2.14 does not.
        """
        if self.preserving is None:
            self.preserving = self.interpreter()(
                model_path=str(self.path), num_threads=self.threads, experimental_preserve_all_tensors=True
            )
            self.preserving.allocate_tensors()
        model = self.preserving
        for index, array in zip(self.input_indices, arrays):
            model.set_tensor(index, array)
        model.invoke()
        details = {detail["index"]: detail for detail in model.get_tensor_details()}
        # The operators of a delegate are also listed individually.
        operators = [each for each in model._get_ops_details() if each["op_name"] != "DELEGATE"]
        outputs = [(each["op_name"], index) for each in operators for index in each["outputs"]]
        overwritten = _overwritten(model, outputs)
        layers = []
        for kind, index in outputs:
            if index in details:
                spec = _spec(details[index])
                values = model.get_tensor(index)
                if index in overwritten:
                    values = values.reshape(-1)[:0]  # empty: the layer keeps its place
                layers.append(Layer(spec.name, kind, spec.scale, values))
        return layers


def _overwritten(model: Any, outputs: list[tuple[str, int]]) -> set[int]:
    """The tensors whose memory a later operator reused for its own output.

    Even if all tensors are preserved, some kernels of tflite-runtime 2.14 work in place: behind a fully
    connected layer, its softmax leaves probabilities where the logits were.
    """
    at: dict[int, list[int]] = {}
    found = set()
    for kind, index in outputs:
        try:
            address = model.tensor(index)().__array_interface__["data"][0]
        except (ValueError, RuntimeError):
            continue  # without memory, such as a tensor inside a delegate
        same = at.setdefault(address, [])
        if kind not in VIEWS:
            found.update(same)
        same.append(index)
    return found


def _spec(detail: dict[str, Any]) -> Spec:
    import numpy as np

    signature = detail.get("shape_signature", detail["shape"])
    shape = tuple(None if size < 0 else int(size) for size in signature)
    if shape and shape[0] is None:
        shape = (int(detail["shape"][0]), *shape[1:])
    scale, zero_point = detail["quantization"]
    quantized = bool(scale)
    return Spec(
        str(detail["name"]),
        shape,
        np.dtype(detail["dtype"]).name,
        float(scale) if quantized else None,
        int(zero_point) if quantized else None,
    )
