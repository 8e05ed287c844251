"""An indexed ONNX graph for editing and running, with the quantization grids from its QDQ nodes."""

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
"""TensorProto data types uint8, int8, uint16 and int16."""


class GraphIndex:
    """A graph indexed by tensor name: producers, consumers, constants and quantizers."""

    def __init__(self, proto: Any) -> None:
        from onnx import numpy_helper

        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        # Exporters write constants as initializers or as Constant nodes.
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
        # Reversed, so that of several quantizers of a tensor the first one wins. The quantizer of a constant
        # belongs to weights stored in float, not to an activation.
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
        """The quantized weights of a convolution or dense layer; None if they are float or blockwise."""
        if len(node.input) < 2 or node.op_type not in WEIGHTED:
            return None
        dequantizer = self.producer.get(node.input[1])
        if (
            dequantizer is None
            or dequantizer.op_type != DEQUANTIZE
            or dequantizer.input[0] not in self.constants
        ):
            return None
        stored, scale = self.constants[dequantizer.input[0]], self.constants[dequantizer.input[1]]
        zero = self.constants[dequantizer.input[2]] if len(dequantizer.input) > 2 else np.zeros(1, np.int64)
        if scale.ndim > 1 or stored.dtype.kind not in "iu":
            return None  # blockwise or sub-byte weights have no range per channel
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axes = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1, "MatMul": -1}
        inner = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1 if transposed else 0, "MatMul": -2}
        return Weights.of(stored, scale, zero, axes[node.op_type], inner[node.op_type])

    def copy(self) -> Any:
        import onnx

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto


def types_of(graph: GraphIndex) -> dict[str, int]:
    """The inferred TensorProto data type of each node output, as far as it is known."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph.proto).graph
    known = (*inferred.value_info, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in known if v.name in graph.producer}


def with_float_io(proto: Any) -> Any:
    """Convert integer graph inputs and outputs to float ones with QuantizeLinear and DequantizeLinear."""
    import onnx

    node = onnx.helper.make_node
    for value in proto.graph.input:
        readers = [at for at in proto.graph.node if value.name in at.input and at.op_type == DEQUANTIZE]
        if value.type.tensor_type.elem_type in STORED and readers:
            stored = value.name + "__stored"
            parameters = list(readers[0].input[1:])
            rewire(proto, {value.name: stored})
            # First in the list: ONNX requires topological order.
            proto.graph.node.insert(0, node(QUANTIZE, [value.name, *parameters], [stored]))
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in proto.graph.output:
        producers = [at for at in proto.graph.node if value.name in at.output and at.op_type == QUANTIZE]
        if value.type.tensor_type.elem_type in STORED and producers:
            stored = value.name + "__stored"
            # The output keeps its name, so the quantized tensor gets a new one.
            rewire(proto, {value.name: stored})
            producers[0].output[0] = stored
            parameters = list(producers[0].input[1:])
            proto.graph.node.append(node(DEQUANTIZE, [stored, *parameters], [value.name]))
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


def rewire(proto: Any, names: Mapping[str, str]) -> None:
    """Replace the tensors that nodes read; ``names`` maps old names to new ones."""
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]


def add_inputs(proto: Any, names: Sequence[str], types: Mapping[str, int] | None = None) -> None:
    """Add graph inputs of any shape; float32 unless ``types`` has another type."""
    import onnx

    for name in names:
        kind = (types or {}).get(name, onnx.TensorProto.FLOAT)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))


def add_outputs(proto: Any, outputs: Mapping[str, str]) -> None:
    """Make the tensors in the values of ``outputs`` graph outputs, unless they already are."""
    import onnx

    present = {output.name for output in proto.graph.output}
    for name in outputs.values():
        if name not in present:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
            present.add(name)


class EditedSession:
    """An edited graph in onnxruntime, whose outputs are returned by key."""

    def __init__(self, proto: Any, outputs: Mapping[str, str], *, optimize: bool = True) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        self.failures = (
            *(failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.NotImplemented),
            failures.RuntimeException,
        )
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        # With several threads, kernels may sum in a different order.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The optimizer fuses QDQ nodes into integer kernels; without it, all operators compute in float.
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except self.failures as error:
            raise StageError(f"onnxruntime cannot load the graph split into its layers: {error}") from error
        self.is_half = {value.name: value.type == "tensor(float16)" for value in self.session.get_inputs()}
        present = {value.name for value in self.session.get_outputs()}
        self.outputs = {key: name for key, name in outputs.items() if name in present}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph; returns all outputs by key, together with ``feeds``.

        Feeds that are not inputs of the graph are ignored.
        """
        inputs = {
            name: np.asarray(value, np.float16 if self.is_half[name] else None)
            for name, value in feeds.items()
            if name in self.is_half
        }
        try:
            results = self.session.run(list(self.outputs.values()), inputs)
        except self.failures as error:
            raise StageError(f"onnxruntime cannot run the graph split into its layers: {error}") from error
        return dict(feeds) | dict(zip(self.outputs, results, strict=True))
