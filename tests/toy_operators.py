"""Single-operator TFLite files, written without a converter, to query runtimes."""

import struct
from pathlib import Path
from typing import Any

from edgeopt.formats.tflite.files.graphs import DTYPES
from edgeopt.formats.tflite.files.schema import OPERATORS, SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack

OPTIONS: dict[str, tuple[str, dict[str, int]]] = {
    "CONV_2D": ("Conv2DOptions", {"stride_w": 1, "stride_h": 1}),
    "SOFTMAX": ("SoftmaxOptions", {"beta": 1}),
}


def write(
    path: Path, *operators: Table, shape: tuple[int, ...], types: tuple[str, str], **given: Any
) -> Path:
    """A file with a chain of operators; all weights are the same constant."""
    tensors = (
        tensor("x", shape, types[0], **given),
        tensor("w", (1, 1, 1, shape[-1]), given.get("weights", types[0]), buffer=1),
        *[tensor("y;fused", shape, types[1], **given) for _ in operators],
    )
    last = len(tensors) - 1
    graph = {
        "tensors": tensors,
        "inputs": numbers(0),
        "outputs": numbers(last),
        "operators": tuple(
            operator.but(
                "code",
                opcode_index=index,
                inputs=numbers(index + 1 if index else 0, *operator.numbers("inputs")[1:]),
                outputs=numbers(index + 2),
            )
            for index, operator in enumerate(operators)
        ),
    }
    model = {
        "version": 3,
        "operator_codes": tuple(_code(operator) for operator in operators),
        "subgraphs": (Table("SubGraph", graph),),
        "buffers": (Table("Buffer", {}), Table("Buffer", {"data": Vector("u8", bytes(4 * shape[-1]))})),
    }
    path.write_bytes(pack(Table("Model", model), SCHEMA, b"TFL3"))
    return path


def operator(kind: str, version: int = 1, *, weighted: bool = False) -> Table:
    """An operator, built-in if there is one of that name."""
    code: dict[str, Any] = {"version": version}
    if kind in OPERATORS:
        number = OPERATORS.index(kind)
        code |= {"builtin_code": number, "deprecated_builtin_code": min(number, 127)}
    else:
        number = OPERATORS.index("CUSTOM")
        code |= {"builtin_code": number, "deprecated_builtin_code": number}
        code["custom_code"] = Vector("str", kind.encode())
    inputs = (0, 1) if weighted else (0,)
    fields: dict[str, Any] = {
        "code": Table("OperatorCode", code), "inputs": numbers(*inputs), "outputs": numbers(2)
    }  # fmt: skip
    if kind in OPTIONS:
        name, options = OPTIONS[kind]
        fields["builtin_options_type"] = SCHEMA.unions["BuiltinOptions"].index(name) + 1
        fields["builtin_options"] = Table(name, options)
    return Table("Operator", fields)


def tensor(name: str, shape: tuple[int, ...], dtype: str, **given: Any) -> Table:
    fields: dict[str, Any] = {
        "name": Vector("str", name.encode()),
        "shape": numbers(*(max(1, size) for size in shape)),
        "type": next(number for number, known in DTYPES.items() if known == dtype),
        "buffer": given.get("buffer", 0),
    }
    if "signature" in given:
        fields["shape_signature"] = numbers(*given["signature"])
    if dtype.startswith("int"):
        scale, zero = Vector("f32", struct.pack("<f", 1 / 256)), Vector("i64", struct.pack("<q", 0))
        fields["quantization"] = Table("QuantizationParameters", {"scale": scale, "zero_point": zero})
    return Table("Tensor", fields)


def numbers(*values: int) -> Vector:
    return Vector("i32", struct.pack(f"<{len(values)}i", *values))


def _code(operator: Table) -> Table:
    code = operator.table("code")
    assert code is not None
    return code
