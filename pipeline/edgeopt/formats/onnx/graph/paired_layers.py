"""Layer-by-layer comparison of a float ONNX file with its quantized version from onnxruntime (QDQ).

onnxruntime preserves tensor names, so equal names identify corresponding layers. All graphs that are run are
derived from the two files: with additional outputs, or with every layer reading its own inputs.
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
    GraphIndex,
    add_inputs,
    add_outputs,
    rewire,
    types_of,
    with_float_io,
)
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import INPUT, Each, Layer, Values, named

ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operators that quantization removes if the range of the quantized output clips the same values."""
FLOATS = (1, 10)
"""TensorProto data types float32 and float16."""
GIVEN, PLUS, RAW, OUT = "__given", "__plus", "__raw", "__out"
"""Name suffixes of added tensors: layer input, error to add, layer output before it, quantized output."""


class OnnxPair:
    """Both graphs, and the sessions derived from them on demand."""

    def __init__(self, reference: Path, quantized: Path) -> None:
        self.float_file = GraphIndex(onnx_model_file.load(reference))
        self.int_file = GraphIndex(with_float_io(onnx_model_file.load(quantized)))
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
        self.outputs = [value.name for value in self.float_file.proto.graph.output]
        missing = [name for name in self.outputs if name not in self.tensors]
        if missing:
            raise StageError(f"{quantized.name} has no output {missing[0]!r}, as {reference.name} has")
        matched = set(self.tensors.values())
        self.unmatched = [
            named(at.name, at.output[0])
            for at in self.int_file.nodes
            if at.op_type in WEIGHTED and not matched & set(at.output)
        ]

    def reference(self, inputs: Sequence[Array]) -> Values:
        return self._run_float.run(self._feeds(inputs))

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        session = self._run_written if written else self._run_quantized
        return self._dequantized(session.run(self._feeds(inputs))) | self._feeds(inputs)

    def each(self, values: Values) -> Each:
        given = {key + GIVEN: values[key] for key in self.tensors if key not in self.float_file.inputs}
        given |= {name: values[name] for name in self.float_file.inputs}
        return Each(
            self._each_float.run(given),
            self._dequantized(self._each_quantized.run(given)),
            self._dequantized(self._each_written.run(given)),
        )

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Values:
        nothing = {name + PLUS: np.zeros((), np.float32) for name in self.tensors}
        feeds = nothing | {key + PLUS: error} | dict(self._feeds(inputs))
        return self._disturbed.run(feeds)

    def _feeds(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip(self.float_file.inputs, inputs, strict=True))

    def _sources(self, node: Any) -> list[str]:
        """The layers that a node of the quantized file reads, directly or through unmatched nodes."""
        keys = {tensor: key for key, tensor in self.tensors.items()}
        sources, queue = [], list(node.input)
        while queue:
            name = queue.pop(0)
            if name in keys:
                sources.append(keys[name])
            elif name in self.int_file.producer:
                queue += self.int_file.producer[name].input
        return list(dict.fromkeys(sources))

    def _dequantized(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Quantized values as real numbers; other values unchanged."""
        grids = {layer.key: layer.grid for layer in self.layers}
        real = {}
        for key, value in values.items():
            grid = grids.get(key)
            if grid is not None and np.issubdtype(value.dtype, np.integer):
                # `grid.low` is the real number of the lowest integer, whatever the zero point.
                steps = value.astype(np.float64) - np.iinfo(str(value.dtype)).min
                value = (grid.low + steps * grid.step).astype(np.float32)
            real[key] = value
        return real

    @cached_property
    def _run_float(self) -> "EditedSession":
        proto = self.float_file.copy()
        add_outputs(proto, {key: key for key in self.tensors if key not in self.float_file.inputs})
        return EditedSession(proto, {key: key for key in self.tensors})

    @cached_property
    def _run_quantized(self) -> "EditedSession":
        return self._whole(optimize=True)

    @cached_property
    def _run_written(self) -> "EditedSession":
        return self._whole(optimize=False)

    def _whole(self, *, optimize: bool) -> "EditedSession":
        """The quantized graph with the quantized tensors as outputs.

        Not the dequantized ones: a float output would keep onnxruntime from fusing QDQ into integer kernels.
        """
        proto = self.int_file.copy()
        stored = {
            key: self.int_file.stored.get(tensor, tensor)
            for key, tensor in self.tensors.items()
            if tensor not in self.int_file.inputs
        }
        add_outputs(proto, stored)
        return EditedSession(proto, stored, optimize=optimize)

    @cached_property
    def _each_float(self) -> "EditedSession":
        proto = self.float_file.copy()
        inner = [key for key in self.tensors if key not in self.float_file.inputs]
        rewire(proto, {key: key + GIVEN for key in inner})
        add_inputs(proto, [key + GIVEN for key in inner])
        add_outputs(proto, {key: key for key in inner})
        return EditedSession(proto, {key: key for key in inner})

    @cached_property
    def _each_quantized(self) -> "EditedSession":
        return self._cut(optimize=True)

    @cached_property
    def _each_written(self) -> "EditedSession":
        return self._cut(optimize=False)

    def _cut(self, *, optimize: bool) -> "EditedSession":
        """The graph with a separate input for every layer, and its output quantized as in the file."""
        import onnx

        proto = self.int_file.copy()
        inner = {key: name for key, name in self.tensors.items() if name not in self.int_file.inputs}
        rewire(proto, {name: key + GIVEN for key, name in inner.items()})
        # Between QDQ nodes everything is float32; other files may contain float16 tensors.
        types = {} if self.int_file.quantizer else types_of(self.int_file)
        add_inputs(
            proto,
            [key + GIVEN for key in inner],
            {key + GIVEN: types[name] for key, name in inner.items() if types.get(name)},
        )
        outputs = {}
        for key, name in inner.items():
            quantizer = self.int_file.quantizer.get(name)
            outputs[key] = name
            if quantizer is not None:
                # A copy: the original quantizer now reads the given input instead of the layer output.
                copied = onnx.NodeProto()
                copied.CopyFrom(quantizer)
                copied.name, copied.input[0], copied.output[0] = "", name, key + OUT
                proto.graph.node.append(copied)
                outputs[key] = key + OUT
        # The original outputs are matched layers, too; their quantized versions take their place.
        del proto.graph.output[:]
        add_outputs(proto, outputs)
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
                    # Right after the producer: ONNX requires topological order.
                    added = onnx.helper.make_node("Add", [key + RAW, key + PLUS], [key])
                    proto.graph.node.insert(index + 1, added)
                    break
        add_inputs(proto, [key + PLUS for key in self.tensors])
        return EditedSession(proto, {name: name for name in self.outputs})


def _tensors(float_file: GraphIndex, int_file: GraphIndex) -> dict[str, str]:
    """Corresponding tensors of both files, float name to quantized name, in execution order."""
    pairs: dict[str, str] = {}
    known = set(int_file.producer) | set(int_file.inputs)
    # Quantizing an input loses information, so it counts as a layer.
    for name in int_file.inputs:
        if name in float_file.inputs and name in int_file.quantizer:
            pairs[name] = name
    for node in int_file.nodes:
        for tensor in node.output:
            if tensor not in int_file.quantizer:
                continue
            # A graph output must keep its name, so there the float name is that of the dequantized tensor.
            dequantized = [out for at in int_file.consumers[int_file.stored[tensor]] for out in at.output]
            names = [n for n in (tensor, *dequantized) if n in float_file.producer]
            if names:
                pairs[_activated(names[0], float_file, known)] = tensor
    if not int_file.quantizer:
        # Dynamic quantization and float16 have no quantizers: float tensors of equal name correspond.
        common = _float_tensors(float_file) & _float_tensors(int_file)
        pairs = {name: name for at in int_file.nodes for name in at.output if name in common}
    for output in float_file.proto.graph.output:
        if output.name not in pairs and output.name in int_file.producer:
            pairs[output.name] = output.name
    return pairs


def _float_tensors(graph: GraphIndex) -> set[str]:
    """Names of the node outputs with a float type."""
    return {name for name, kind in types_of(graph).items() if kind in FLOATS} - set(graph.constants)


def _activated(name: str, float_file: GraphIndex, known: set[str]) -> str:
    """The tensor after the activations that the quantized file replaces by clipping to a range."""
    # Until a tensor that something else reads as well, or that the quantized file also contains.
    while True:
        readers = float_file.consumers[name]
        if len(readers) != 1 or readers[0].op_type not in ACTIVATIONS or readers[0].output[0] in known:
            return name
        name = readers[0].output[0]
