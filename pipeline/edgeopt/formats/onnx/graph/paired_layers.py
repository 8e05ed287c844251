"""ONNX files side by side: a float one, and the same quantized in QDQ form by onnxruntime.

Tensors keep their names when onnxruntime quantizes, so they tell which layers belong together. All
graphs that are run are made from the two files: with more outputs, or cut at every layer.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph.graph_index import (
    WEIGHTED,
    EditedSession,
    Wires,
    accept,
    expose,
    rewire,
    types_of,
    with_real_ends,
)
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import INPUT, Each, Layer, Values, named

ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operators that vanish when the range of a quantized tensor says the same."""
FLOATS = (1, 10)
"""float32 and float16, as ONNX numbers its types."""
GIVEN, PLUS, RAW, OUT = "__given", "__plus", "__raw", "__out"


class OnnxPair:
    """Both graphs, and the sessions made from them on demand."""

    def __init__(self, reference: Path, quantized: Path) -> None:
        self.float_file = Wires(onnx_model_file.load(reference))
        self.int_file = Wires(with_real_ends(onnx_model_file.load(quantized)))
        self.tensors = _tensors(self.float_file, self.int_file)
        self.layers = [
            Layer(
                key,
                key if at is None else named(at.name, key),
                INPUT if at is None else at.op_type,
                self.int_file.grids.get(tensor),
                None if at is None else self.int_file.weights(at),
                tuple(self._sources(at)) if at is not None else (),
                channels_last=False,
            )
            for key, tensor in self.tensors.items()
            for at in [self.int_file.producer.get(tensor)]
        ]
        self.output = self.float_file.proto.graph.output[0].name
        if self.output not in self.tensors:
            raise StageError(f"{quantized.name} has no output {self.output!r}, as {reference.name} has")
        given = set(self.tensors.values())
        self.unmatched = [
            named(at.name, at.output[0])
            for at in self.int_file.nodes
            if at.op_type in WEIGHTED and not given & set(at.output)
        ]

    def reference(self, inputs: Sequence[Array]) -> Values:
        return self._run_float.run(self._feeds(inputs))

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        session = self._run_written if written else self._run_quantized
        return self._real(session.run(self._feeds(inputs))) | self._feeds(inputs)

    def each(self, values: Values) -> Each:
        given = {key + GIVEN: values[key] for key in self.tensors if key not in self.float_file.inputs}
        given |= {name: values[name] for name in self.float_file.inputs}
        return Each(
            self._each_float.run(given),
            self._real(self._each_quantized.run(given)),
            self._real(self._each_written.run(given)),
        )

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Array:
        nothing = {name + PLUS: np.zeros((), np.float32) for name in self.tensors}
        feeds = nothing | {key + PLUS: error} | dict(self._feeds(inputs))
        return self._disturbed.run(feeds)[self.output]

    def _feeds(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip(self.float_file.inputs, inputs, strict=True))

    def _sources(self, node: Any) -> list[str]:
        """The layers that a node of the quantized file reads, through whatever lies between."""
        keys = {tensor: key for key, tensor in self.tensors.items()}
        found, waiting = [], list(node.input)
        while waiting:
            name = waiting.pop(0)
            if name in keys:
                found.append(keys[name])
            elif name in self.int_file.producer:
                waiting += self.int_file.producer[name].input
        return list(dict.fromkeys(found))

    def _real(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Stored integers as the real numbers that they stand for."""
        grids = {layer.key: layer.grid for layer in self.layers}
        real = {}
        for key, value in values.items():
            grid = grids.get(key)
            if grid is not None and np.issubdtype(value.dtype, np.integer):
                steps = value.astype(np.float64) - np.iinfo(str(value.dtype)).min
                value = (grid.low + steps * grid.step).astype(np.float32)
            real[key] = value
        return real

    @cached_property
    def _run_float(self) -> "EditedSession":
        proto = self.float_file.copy()
        expose(proto, {key: key for key in self.tensors if key not in self.float_file.inputs})
        return EditedSession(proto, {key: key for key in self.tensors})

    @cached_property
    def _run_quantized(self) -> "EditedSession":
        return self._whole(optimize=True)

    @cached_property
    def _run_written(self) -> "EditedSession":
        return self._whole(optimize=False)

    def _whole(self, *, optimize: bool) -> "EditedSession":
        """The quantized file that also gives its integers: to give real values would undo its kernels."""
        proto = self.int_file.copy()
        stored = {
            key: self.int_file.stored.get(tensor, tensor)
            for key, tensor in self.tensors.items()
            if tensor not in self.int_file.inputs
        }
        expose(proto, stored)
        return EditedSession(proto, stored, optimize=optimize)

    @cached_property
    def _each_float(self) -> "EditedSession":
        proto = self.float_file.copy()
        inner = [key for key in self.tensors if key not in self.float_file.inputs]
        rewire(proto, {key: key + GIVEN for key in inner})
        accept(proto, [key + GIVEN for key in inner])
        expose(proto, {key: key for key in inner})
        return EditedSession(proto, {key: key for key in inner})

    @cached_property
    def _each_quantized(self) -> "EditedSession":
        return self._cut(optimize=True)

    @cached_property
    def _each_written(self) -> "EditedSession":
        return self._cut(optimize=False)

    def _cut(self, *, optimize: bool) -> "EditedSession":
        """Every layer reads what is given for it; what it gives is quantized as it is in the file."""
        import onnx

        proto = self.int_file.copy()
        inner = {key: name for key, name in self.tensors.items() if name not in self.int_file.inputs}
        rewire(proto, {name: key + GIVEN for key, name in inner.items()})
        types = {} if self.int_file.quantizer else types_of(self.int_file)
        accept(
            proto,
            [key + GIVEN for key in inner],
            {key + GIVEN: types[name] for key, name in inner.items() if types.get(name)},
        )
        outputs = {}
        for key, name in inner.items():
            quantizer = self.int_file.quantizer.get(name)
            outputs[key] = name
            if quantizer is not None:
                again = onnx.NodeProto()
                again.CopyFrom(quantizer)
                again.name, again.input[0], again.output[0] = "", name, key + OUT
                proto.graph.node.append(again)
                outputs[key] = key + OUT
        del proto.graph.output[:]
        expose(proto, outputs)
        return EditedSession(proto, outputs, optimize=optimize)

    @cached_property
    def _disturbed(self) -> "EditedSession":
        import onnx

        proto = self.float_file.copy()
        for key in self.tensors:
            if key in self.float_file.inputs:
                rewire(proto, {key: key + RAW})
                added = onnx.helper.make_node("Add", [key, key + PLUS], [key + RAW])
                proto.graph.node.insert(0, added)
                continue
            for index, node in enumerate(proto.graph.node):
                if key in node.output:
                    node.output[list(node.output).index(key)] = key + RAW
                    added = onnx.helper.make_node("Add", [key + RAW, key + PLUS], [key])
                    proto.graph.node.insert(index + 1, added)
                    break
        accept(proto, [key + PLUS for key in self.tensors])
        return EditedSession(proto, {self.output: self.output})


def _tensors(float_file: Wires, int_file: Wires) -> dict[str, str]:
    """Names of the tensors that both files have, float to quantized, in the order of execution."""
    found: dict[str, str] = {}
    known = set(int_file.producer) | set(int_file.inputs)
    for name in int_file.inputs:
        if name in float_file.inputs and name in int_file.quantizer:
            found[name] = name
    for node in int_file.nodes:
        for tensor in node.output:
            if tensor not in int_file.quantizer:
                continue
            # At the end of a graph the tensor's own name stands behind the quantization.
            behind = [out for at in int_file.consumers[int_file.stored[tensor]] for out in at.output]
            names = [n for n in (tensor, *behind) if n in float_file.producer]
            if names:
                found[_activated(names[0], float_file, known)] = tensor
    if not int_file.quantizer:
        # Quantized at run time, or stored in half: what both files call alike is compared.
        real = _real_tensors(float_file)
        there = _real_tensors(int_file)
        found = {name: name for at in int_file.nodes for name in at.output if name in real & there}
    for output in float_file.proto.graph.output:
        if output.name not in found and output.name in int_file.producer:
            found[output.name] = output.name
    return found


def _real_tensors(graph: Wires) -> set[str]:
    """Names of the float tensors that the nodes of a graph give."""
    return {name for name, kind in types_of(graph).items() if kind in FLOATS} - set(graph.constants)


def _activated(name: str, float_file: Wires, known: set[str]) -> str:
    """The tensor behind the activations that the quantized file expresses by a range."""
    while True:
        readers = float_file.consumers[name]
        if len(readers) != 1 or readers[0].op_type not in ACTIVATIONS or readers[0].output[0] in known:
            return name
        name = readers[0].output[0]
