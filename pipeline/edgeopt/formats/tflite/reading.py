"""Read-only view of a TFLite file: its tensors, its operators, and what type they work in.

Only the structure is read, never the buffers, so it does not matter whether these lie inside the flatbuffer
or behind it, as ai-edge-quantizer and converters of large models write them.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.model import Layout, TensorSpec

IDENTIFIER = b"TFL3"

DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool", 7: "int16",
    8: "complex64", 9: "int8", 10: "float64", 11: "complex128", 12: "uint64", 15: "uint32", 16: "uint16",
    17: "int4", 18: "bfloat16", 19: "int2",
}  # fmt: skip

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"})
"""Operators that hold nearly all weights and arithmetic of a network."""


class Operator(NamedTuple):
    """One operator: its built-in name, and the dtypes of what it reads and writes (``none`` if left out)."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph(NamedTuple):
    """The main subgraph of a file. ``inputs`` and ``outputs`` are in the order the interpreter takes them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[Operator, ...]

    def count(self, kind: str) -> int:
        """How many operators of one kind there are, such as ``TRANSPOSE``."""
        return Counter(operator.kind for operator in self.operators)[kind]

    def float_weighted(self) -> list[str]:
        """Names of the convolutions and dense layers that compute in float or hold float weights."""
        return [
            f"{operator.kind} {operator.name}"
            for operator in self.operators
            if operator.kind in WEIGHTED and any(dtype.startswith("float") for dtype in operator.inputs[:2])
        ]

    def float_others(self) -> list[str]:
        """Kinds of the operators without weights that compute in float."""
        return sorted(
            {
                operator.kind
                for operator in self.operators
                if operator.kind not in WEIGHTED | {"QUANTIZE", "DEQUANTIZE"}
                and any(dtype.startswith("float") for dtype in (*operator.inputs, *operator.outputs))
            }
        )


def read(path: Path, layout: Layout | None = None) -> Graph:
    """Read the main subgraph of ``path``; inputs of rank 4 are said to have ``layout``.

    Raises:
        StageError: when the file is not a TFLite model.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != IDENTIFIER:
        raise StageError(
            f"{path.name} is not a TFLite model: the identifier TFL3 is missing",
            fix="give the file that a TFLite converter wrote",
        )
    model = schema.Model.GetRootAs(content, 0)
    subgraph = model.Subgraphs(0)
    tensors = [subgraph.Tensors(i) for i in range(subgraph.TensorsLength())]
    names = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [names.get(max(c.BuiltinCode(), c.DeprecatedBuiltinCode()), "UNKNOWN") for c in codes]

    def dtype(index: int) -> str:
        return DTYPES.get(tensors[index].Type(), "unknown") if index >= 0 else "none"

    operators = []
    for i in range(subgraph.OperatorsLength()):
        operator = subgraph.Operators(i)
        inputs = [operator.Inputs(k) for k in range(operator.InputsLength())]
        outputs = [operator.Outputs(k) for k in range(operator.OutputsLength())]
        name = _name(tensors[outputs[0]]) if outputs else ""
        operators.append(
            Operator(
                kinds[operator.OpcodeIndex()], name, tuple(map(dtype, inputs)), tuple(map(dtype, outputs))
            )
        )
    input_names, output_names = signature_names(model)

    def specs(count: int, at: Any, known: dict[int, str], image: Layout | None) -> tuple[TensorSpec, ...]:
        return tuple(_spec(tensors[at(k)], known.get(at(k)), image) for k in range(count))

    return Graph(
        specs(subgraph.InputsLength(), subgraph.Inputs, input_names, layout),
        specs(subgraph.OutputsLength(), subgraph.Outputs, output_names, None),
        tuple(operators),
    )


def signature_names(model: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Tensor index to the name that the first signature gives it, for inputs and for outputs."""
    if not model.SignatureDefsLength():
        return {}, {}
    signature = model.SignatureDefs(0)
    inputs = [signature.Inputs(i) for i in range(signature.InputsLength())]
    outputs = [signature.Outputs(i) for i in range(signature.OutputsLength())]
    return (
        {entry.TensorIndex(): entry.Name().decode() for entry in inputs},
        {entry.TensorIndex(): entry.Name().decode() for entry in outputs},
    )


def _name(tensor: Any) -> str:
    """The name of a tensor; a slimmed file has none for most."""
    return (tensor.Name() or b"").decode(errors="replace")


def _spec(tensor: Any, name: str | None, layout: Layout | None) -> TensorSpec:
    shape: tuple[int | None, ...] = tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))
    if tensor.ShapeSignatureLength():
        signature = (tensor.ShapeSignature(i) for i in range(tensor.ShapeSignatureLength()))
        shape = tuple(None if size < 0 else size for size in signature)
    quantization = tensor.Quantization()
    quantized = quantization is not None and quantization.ScaleLength() == 1
    return TensorSpec(
        name=name or _name(tensor),
        shape=shape,
        dtype=DTYPES.get(tensor.Type(), "unknown"),
        layout=layout if len(shape) == 4 else None,
        scale=float(quantization.Scale(0)) if quantized else None,
        zero_point=int(quantization.ZeroPoint(0)) if quantized and quantization.ZeroPointLength() else None,
    )
