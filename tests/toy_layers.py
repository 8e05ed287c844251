"""An int8 TFLite file of two convolutions, one depthwise, with given weights; written without a converter."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.tflite.files.graphs import DTYPES
from edgeopt.formats.tflite.files.schema import OPERATORS, SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack

KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D")
OPTIONS = ("Conv2DOptions", "DepthwiseConv2DOptions")
IMAGE = (1, 8, 8, 16)
SHAPES = ((32, 3, 3, 16), (1, 3, 3, 32))
"""Of the weights of both layers."""
INPUT, OUTPUT, WEIGHT = 0.05, 0.2, 0.01
"""Scales of the image, of both outputs, and of the weights of a first channel: the next ones have larger."""


def few_values(values: Sequence[int], seed: int = 0) -> list[NDArray[np.int8]]:
    """Random weights of both layers, of these values: the first ones are the most frequent."""
    random = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(len(values))
    return [
        random.choice(np.asarray(values, np.int8), shape, p=shares / shares.sum()).astype(np.int8)
        for shape in SHAPES
    ]


def two_layers(weights: Sequence[NDArray[np.int8]], *, per_channel: bool = False) -> bytes:
    """The file; outputs of the first layer are read by the second one."""
    random = np.random.default_rng(1)
    buffers = [b""]
    tensors = [_tensor("image", IMAGE, "int8", [INPUT])]
    operators = []
    for number, (values, axis) in enumerate(zip(weights, (0, 3), strict=True)):
        count = 32 if per_channel else 1
        scales = [WEIGHT * (1 + channel / 8) for channel in range(count)]
        buffers += [values.tobytes(), random.integers(-500, 500, 32, np.int32).tobytes()]
        at = len(tensors)
        tensors += [
            _tensor(f"layer{number}/weights", values.shape, "int8", scales, len(buffers) - 2, axis),
            _tensor(
                f"layer{number}/bias",
                (32,),
                "int32",
                [(OUTPUT if number else INPUT) * each for each in scales],
                len(buffers) - 1,
            ),
            _tensor(f"layer{number}/out", (1, 8, 8, 32), "int8", [OUTPUT]),
        ]
        options = Table(
            OPTIONS[number], {"stride_w": 1, "stride_h": 1, **({"depth_multiplier": 1} if number else {})}
        )
        fields: dict[str, Any] = {
            "opcode_index": number,
            "inputs": _numbers(at - 1 if number else 0, at, at + 1),
            "outputs": _numbers(at + 2),
            "builtin_options_type": SCHEMA.unions["BuiltinOptions"].index(OPTIONS[number]) + 1,
            "builtin_options": options,
        }
        operators.append(Table("Operator", fields))
    graph = {
        "tensors": tuple(tensors),
        "inputs": _numbers(0),
        "outputs": _numbers(len(tensors) - 1),
        "operators": tuple(operators),
    }
    model = {
        "version": 3,
        "operator_codes": tuple(_code(kind) for kind in KINDS),
        "subgraphs": (Table("SubGraph", graph),),
        "buffers": tuple(Table("Buffer", {"data": Vector("u8", data)} if data else {}) for data in buffers),
    }
    return pack(Table("Model", model), SCHEMA, b"TFL3")


def _code(kind: str) -> Table:
    number = OPERATORS.index(kind)
    return Table("OperatorCode", {"version": 3, "builtin_code": number, "deprecated_builtin_code": number})


def _tensor(
    name: str, shape: Sequence[int], dtype: str, scales: Sequence[float], buffer: int = 0, axis: int = 0
) -> Table:
    quantization = {
        "scale": Vector("f32", struct.pack(f"<{len(scales)}f", *scales)),
        "zero_point": Vector("i64", bytes(8 * len(scales))),
        "quantized_dimension": axis if len(scales) > 1 else 0,
    }
    fields: dict[str, Any] = {
        "name": Vector("str", name.encode()),
        "shape": _numbers(*shape),
        "type": next(number for number, known in DTYPES.items() if known == dtype),
        "buffer": buffer,
        "quantization": Table("QuantizationParameters", quantization),
    }
    return Table("Tensor", fields)


def _numbers(*values: int) -> Vector:
    return Vector("i32", struct.pack(f"<{len(values)}i", *values))
