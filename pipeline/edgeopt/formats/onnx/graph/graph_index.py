"""An ONNX graph with its wires looked up, to be changed and run; and what QDQ nodes say of its tensors."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import Grid, Weights

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
STORED = (2, 3, 4, 5)
"""uint8, int8, uint16 and int16, as ONNX numbers its types."""


class Wires:
    """A graph with its wires looked up."""

    def __init__(self, proto: Any) -> None:
        from onnx import numpy_helper

        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.constants |= {
            at.output[0]: numpy_helper.to_array(at.attribute[0].t)
            for at in self.nodes
            if at.op_type == "Constant" and at.attribute[0].name == "value"
        }
        self.producer = {name: at for at in self.nodes for name in at.output}
        self.inputs = [i.name for i in proto.graph.input if i.name not in self.constants]
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for at in self.nodes:
            for name in at.input:
                self.consumers[name].append(at)
        self.quantizer = {
            at.input[0]: at
            for at in reversed(self.nodes)
            if at.op_type == QUANTIZE and at.input[0] not in self.constants
        }
        self.stored = {name: at.output[0] for name, at in self.quantizer.items()}
        self.grids = {name: self._grid(at) for name, at in self.quantizer.items()}

    def _grid(self, quantizer: Any) -> Grid:
        scale = self.constants[quantizer.input[1]]
        zero = self.constants[quantizer.input[2]] if len(quantizer.input) > 2 else np.uint8(0)
        return Grid.of(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), str(zero.dtype))

    def weights(self, node: Any) -> Weights | None:
        """The quantized weights of a convolution or dense layer."""
        if len(node.input) < 2 or node.op_type not in WEIGHTED:
            return None
        back = self.producer.get(node.input[1])
        if back is None or back.op_type != DEQUANTIZE or back.input[0] not in self.constants:
            return None
        stored, scale = self.constants[back.input[0]], self.constants[back.input[1]]
        zero = self.constants[back.input[2]] if len(back.input) > 2 else np.zeros(1, np.int64)
        if scale.ndim > 1 or stored.dtype.kind not in "iu":
            return None  # in blocks, or less than a byte each: there is no range per channel
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axes = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1, "MatMul": -1}
        inner = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1 if transposed else 0, "MatMul": -2}
        return Weights.of(stored, scale, zero, axes[node.op_type], inner[node.op_type])

    def copy(self) -> Any:
        import onnx

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto


def types_of(graph: Wires) -> dict[str, int]:
    """The types of the tensors that the nodes of a graph give, as ONNX numbers them, where they are known."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph.proto).graph
    known = (*inferred.value_info, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in known if v.name in graph.producer}


def with_real_ends(proto: Any) -> Any:
    """A file that takes and gives integers, changed to quantize and dequantize these itself."""
    import onnx

    node = onnx.helper.make_node
    for value in proto.graph.input:
        readers = [at for at in proto.graph.node if value.name in at.input and at.op_type == DEQUANTIZE]
        if value.type.tensor_type.elem_type in STORED and readers:
            stored = value.name + "__stored"
            parameters = list(readers[0].input[1:])
            rewire(proto, {value.name: stored})
            proto.graph.node.insert(0, node(QUANTIZE, [value.name, *parameters], [stored]))
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in proto.graph.output:
        makers = [at for at in proto.graph.node if value.name in at.output and at.op_type == QUANTIZE]
        if value.type.tensor_type.elem_type in STORED and makers:
            stored = value.name + "__stored"
            rewire(proto, {value.name: stored})
            makers[0].output[0] = stored
            parameters = list(makers[0].input[1:])
            proto.graph.node.append(node(DEQUANTIZE, [stored, *parameters], [value.name]))
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


def rewire(proto: Any, names: Mapping[str, str]) -> None:
    """Let every reader of a tensor read another one instead."""
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]


def accept(proto: Any, names: Sequence[str], types: Mapping[str, int] | None = None) -> None:
    """Inputs of any shape; of float32 where ``types`` does not tell otherwise."""
    import onnx

    for name in names:
        kind = (types or {}).get(name, onnx.TensorProto.FLOAT)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))


def expose(proto: Any, outputs: Mapping[str, str]) -> None:
    """Let the graph give these tensors as well."""
    import onnx

    there = {output.name for output in proto.graph.output}
    for name in outputs.values():
        if name not in there:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
            there.add(name)


class EditedSession:
    """A graph in onnxruntime; gives its outputs under their keys."""

    def __init__(self, proto: Any, outputs: Mapping[str, str], *, optimize: bool = True) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        self.failures = (
            *(failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.NotImplemented),
            failures.RuntimeException,
        )
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except self.failures as error:
            raise StageError(f"onnxruntime cannot load the graph cut at its layers: {error}") from error
        halves = "tensor(float16)"
        self.inputs = {value.name: value.type == halves for value in self.session.get_inputs()}
        given = {value.name for value in self.session.get_outputs()}
        self.outputs = {key: name for key, name in outputs.items() if name in given}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by its key, and the inputs that are layers too."""
        wanted = {
            name: np.asarray(value, np.float16 if self.inputs[name] else None)
            for name, value in feeds.items()
            if name in self.inputs
        }
        try:
            results = self.session.run(list(self.outputs.values()), wanted)
        except self.failures as error:
            raise StageError(f"onnxruntime cannot run the graph cut at its layers: {error}") from error
        return dict(feeds) | dict(zip(self.outputs, results, strict=True))
