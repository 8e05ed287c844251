"""The layers of an ONNX file that hold weights: names, sizes, types, and patterns over the names."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import matching
from edgeopt.formats.onnx.files.model_file import WEIGHTED

INTEGER = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})
"""What dynamic quantization makes of them: the input becomes uint8 at run time."""
BLOCKWISE = "MatMulNBits"
RECURRENT = frozenset({"GRU", "LSTM", "RNN", "DynamicQuantizeLSTM"})
SHOWN = 5
DYNAMIC_SUFFIX = "_quant"


class Layer(NamedTuple):
    """A convolution, matrix product or recurrent layer as it stands in the file."""

    name: str
    kind: str
    weights: int
    """Constant weights, 0 for a product of two computed tensors."""
    weight: str
    """Type in which the weights are stored."""
    activation: str
    """Type of what goes in."""


def read(model: Any) -> list[Layer]:
    """Every convolution, matrix product and recurrent layer, in the graph's order, whatever form it has."""
    known = _Types(model)
    found = []
    for node in model.graph.node:
        name = node.name or node.output[0]
        if node.op_type in WEIGHTED:
            source = known.source(node.input[1])
            activation = known.stored(node.input[0])
        elif node.op_type in INTEGER:
            source, activation, name = (
                node.input[1],
                "uint8",
                name.removesuffix(DYNAMIC_SUFFIX),
            )
        elif node.op_type in RECURRENT:
            weights = known.size(node.input[1]) + known.size(node.input[2])
            types = known.stored(node.input[1]), known.stored(node.input[0])
            found.append(Layer(name.removesuffix(DYNAMIC_SUFFIX), node.op_type, weights, *types))
            continue
        elif node.op_type == BLOCKWISE:
            bits = next(a.i for a in node.attribute if a.name == "bits")
            weights = prod(a.i for a in node.attribute if a.name in ("K", "N"))
            found.append(Layer(name, node.op_type, weights, f"int{bits}", known.stored(node.input[0])))
            continue
        else:
            continue
        found.append(Layer(name, node.op_type, known.size(source), known.stored(node.input[1]), activation))
    return found


class _Types:
    def __init__(self, model: Any) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output}
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.values = {value.name: value.type.tensor_type.elem_type for value in values}

    def source(self, name: str) -> str:
        """The constant behind a DequantizeLinear or a Cast, else the tensor itself."""
        node = self.producers.get(name)
        while node is not None and node.op_type in ("DequantizeLinear", "Cast", "Transpose", "Reshape"):
            name = node.input[0]
            node = self.producers.get(name)
        return name

    def size(self, name: str) -> int:
        tensor = self.constants.get(name)
        return prod(tensor.dims) if tensor is not None else 0

    def stored(self, name: str) -> str:
        """The type behind a DequantizeLinear, else the tensor's own; ``float32`` where nothing tells."""
        import onnx

        node = self.producers.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
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
        if node is None:
            return "float32"
        if node.op_type == "Cast":
            import onnx

            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            return str(onnx.helper.tensor_dtype_to_np_dtype(to).name)
        if node.op_type == "QuantizeLinear":
            return self.stored(node.input[2]) if len(node.input) > 2 else "uint8"
        if node.op_type in WEIGHTED or node.op_type == BLOCKWISE:
            # Both inputs and the output of these have one type.
            return self.stored(node.input[1]) if node.op_type in WEIGHTED else self.stored(node.input[0])
        return self.stored(node.input[0]) if node.input else "float32"


def chosen(names: Sequence[str], usual: str, patterns: Mapping[str, str]) -> dict[str, str]:
    """The precision of every layer: ``usual`` unless a pattern says otherwise; the last one to fit counts.

    Raises:
        StageError: a pattern fits no layer.
    """
    said = {name: patterns[pattern] for name, pattern in matching(patterns, names).items()}
    return dict.fromkeys(names, usual) | said


def refuse(wrong: Iterable[str], scheme: str, fix: str) -> None:
    """Tell which layers did not become what was asked for.

    Raises:
        StageError: when there are any.
    """
    lines = list(wrong)
    if lines:
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise StageError(
            f"{len(lines)} layers did not become what {scheme} means: {'; '.join(lines[:SHOWN])}{more}",
            fix=fix,
        )
