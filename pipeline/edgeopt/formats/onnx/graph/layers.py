"""The weighted layers of an ONNX file: names, sizes, data types, and patterns over the names."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import matching
from edgeopt.formats.onnx.files.model_file import WEIGHTED

INTEGER = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})
"""Operators of dynamic quantization: their input is quantized to uint8 at run time."""
BLOCKWISE = "MatMulNBits"
RECURRENT = frozenset({"GRU", "LSTM", "RNN", "DynamicQuantizeLSTM"})
SHOWN = 5
"""Number of layers in a message."""
DYNAMIC_SUFFIX = "_quant"
"""Suffix that onnxruntime appends to the name of a dynamically quantized node."""


class Layer(NamedTuple):
    """A convolution, matrix product or recurrent layer of the file."""

    name: str
    kind: str
    weights: int
    """Number of constant weights; 0 for a product of two computed tensors."""
    weight: str
    """Storage type of the weights."""
    activation: str
    """Type of the input."""


def joined_outputs(model: Any) -> tuple[str, ...]:
    """The nodes after the last layers that join values of several layers in one output, and those after them.

    In 8 bits, all values of a joined tensor share one scale, such as boxes and scores of a detector. Nodes
    before, such as an activation, are part of their layer.
    """
    layers = {layer.name for layer in read(model)}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    after: dict[str, Any] = {}
    for node in reversed(model.graph.node):
        following = [reader.name for name in node.output for reader in readers.get(name, ())]
        ends = bool(following) or bool(outputs & set(node.output))
        if node.name not in layers and ends and all(name in after for name in following):
            after[node.name] = node
    joined, written = list[str](), set[str]()
    for name, node in reversed(after.items()):
        if node.op_type == "Concat" or written & set(node.input):
            joined.append(name)
            written.update(node.output)
    return tuple(joined)


def in_float(model: Any, file: str) -> list[Layer]:
    """The layers of a float model that is to be quantized; ``file`` is its name.

    Raises:
        StageError: there are none, a layer is already quantized, or all are in branches or loops.
    """
    layers = read(model)
    for layer in layers:
        if layer.weight != "float32" and layer.weights:
            reason = f"{layer.name} has {layer.weight} weights"
            raise StageError(f"{file} cannot be quantized: {reason}", fix="quantize the float model")
    if not layers:
        outer = [node for node in model.graph.node if any(map(_has_layers, _inner(node)))]
        if outer:
            raise StageError(
                f"{file} cannot be quantized: all of its layers are inside of node {outer[0].name!r} "
                f"({outer[0].op_type}), which onnxruntime does not quantize",
                fix="export the branch that is used, such as one sampling rate, or the loop's body unrolled",
            )
        raise StageError(
            f"{file} cannot be quantized: it has no layers with weights",
            fix="remove quantize from this variant",
        )
    return layers


def _inner(node: Any) -> list[Any]:
    """The graphs of the branches or the loop of a node."""
    return [each.g for each in node.attribute if each.HasField("g")]


def _has_layers(graph: Any) -> bool:
    return any(
        node.op_type in WEIGHTED | RECURRENT or any(map(_has_layers, _inner(node))) for node in graph.node
    )


def read(model: Any) -> list[Layer]:
    """All convolutions, matrix products and recurrent layers in graph order, float or quantized."""
    types = _Types(model)
    layers = []
    for node in model.graph.node:
        name = node.name or node.output[0]
        if node.op_type in WEIGHTED:
            source = types.source(node.input[1])
            activation = types.stored(node.input[0])
        elif node.op_type in INTEGER:
            source, activation, name = (
                node.input[1],
                "uint8",
                name.removesuffix(DYNAMIC_SUFFIX),
            )
        elif node.op_type in RECURRENT:
            weights = types.size(node.input[1]) + types.size(node.input[2])
            weight, activation = types.stored(node.input[1]), types.stored(node.input[0])
            name = name.removesuffix(DYNAMIC_SUFFIX)
            layers.append(Layer(name, node.op_type, weights, weight, activation))
            continue
        elif node.op_type == BLOCKWISE:
            bits = next(a.i for a in node.attribute if a.name == "bits")
            weights = prod(a.i for a in node.attribute if a.name in ("K", "N"))
            layers.append(Layer(name, node.op_type, weights, f"int{bits}", types.stored(node.input[0])))
            continue
        else:
            continue
        weight = types.stored(node.input[1])
        layers.append(Layer(name, node.op_type, types.size(source), weight, activation))
    return layers


class _Types:
    """Lookup of the storage types of tensors, through dequantization and casts."""

    def __init__(self, model: Any) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output}
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.values = {value.name: value.type.tensor_type.elem_type for value in values}

    def source(self, name: str) -> str:
        """The tensor before any DequantizeLinear, Cast, Transpose or Reshape."""
        node = self.producers.get(name)
        while node is not None and node.op_type in ("DequantizeLinear", "Cast", "Transpose", "Reshape"):
            name = node.input[0]
            node = self.producers.get(name)
        return name

    def size(self, name: str) -> int:
        tensor = self.constants.get(name)
        return prod(tensor.dims) if tensor is not None else 0

    def stored(self, name: str) -> str:
        """The type before a DequantizeLinear, otherwise that of the tensor; ``float32`` if unknown."""
        import onnx

        node = self.producers.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            # The zero point has the type of the quantized tensor, which itself may have no recorded type.
            for candidate in (node.input[0], *node.input[2:3]):
                if candidate in self.constants:
                    kind = self.constants[candidate].data_type
                    return str(onnx.TensorProto.DataType.Name(kind)).lower()
            return self.stored(node.input[0])
        kind = self.constants[name].data_type if name in self.constants else self.values.get(name, 0)
        if kind == 0:
            return self._computed(node)
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name) if kind else "float32"

    def _computed(self, node: Any) -> str:
        """The output type of a node without shape inference, from its inputs or attributes."""
        if node is None:
            return "float32"
        if node.op_type == "Cast":
            import onnx

            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            return str(onnx.helper.tensor_dtype_to_np_dtype(to).name)
        if node.op_type == "QuantizeLinear":
            return self.stored(node.input[2]) if len(node.input) > 2 else "uint8"
        if node.op_type in WEIGHTED or node.op_type == BLOCKWISE:
            # The inputs and the output of these operators have the same type.
            return self.stored(node.input[1]) if node.op_type in WEIGHTED else self.stored(node.input[0])
        return self.stored(node.input[0]) if node.input else "float32"


def chosen(names: Sequence[str], usual: str, patterns: Mapping[str, str]) -> dict[str, str]:
    """The precision of every layer: that of the last matching pattern, otherwise ``usual``.

    Raises:
        StageError: a pattern matches no layer.
    """
    overrides = {name: patterns[pattern] for name, pattern in matching(patterns, names).items()}
    return dict.fromkeys(names, usual) | overrides


def refuse(wrong: Iterable[str], scheme: str, fix: str) -> None:
    """Reject a file with layers that do not have the requested types; ``wrong`` describes each.

    Raises:
        StageError: there is such a layer.
    """
    lines = list(wrong)
    if lines:
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise StageError(
            f"{len(lines)} layers do not match the scheme {scheme}: {'; '.join(lines[:SHOWN])}{more}",
            fix=fix,
        )
