"""Types of the tensors in the XNNPACK delegate blobs of an ExecuTorch program, read from the file.

Sources: executorch/backends/xnnpack/serialization/schema.fbs, and the header of a blob in
``xnnpack_graph_serialize.py``.
"""

import struct
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.wire.flatbuffer import Reader, Schema

SCHEMA = Schema(
    """
XNNGraph: version:str - xvalues:[XValue] num_externs:u32 input_ids:[u32] output_ids:[u32] - - -
XValue: xvalue_union_type:u8 xvalue_union:<XValueUnion>
XNNTensorValue: datatype:i16 num_dims:u32 dims:[u32] constant_buffer_idx:u32 external_id:u32 flags:u32
    id_out:u32
XNNQuantizedTensorValue: tensor_value:XNNTensorValue - -
""",
    {"XValueUnion": ("XNNTensorValue", "XNNQuantizedTensorValue")},
)

TYPES = (
    *("invalid", "float32", "float16", "int8", "uint8", "int32", "int8 per channel", "int32 per channel"),
    *("int4 per channel", "int8 at run time", "int4 per block", "int8 packed", "int32 plain"),
    *("float32 packed", "bfloat16"),
)
"""XNNPACK's data types in the order of their enum values."""

MAGIC = b"XH00"
HEADER = struct.Struct("<4s4sHIIIQ")


class Tensor(NamedTuple):
    """A tensor of a delegate blob. ``constant``: its values are stored in the file, as for a weight."""

    type: str
    shape: tuple[int, ...]
    constant: bool


def read(path: Path) -> tuple[Tensor, ...]:
    """Tensors of all XNNPACK delegate blobs of a program; empty if it has none.

    Raises:
        StageError: a blob is damaged.
    """
    content = path.read_bytes()
    tensors: list[Tensor] = []
    # The magic number follows four zero bytes at the start of a blob.
    place = content.find(MAGIC)
    while place >= 4:
        tensors += _blob(content, place - 4, path.name)
        place = content.find(MAGIC, place + len(MAGIC))
    return tuple(tensors)


def _blob(content: bytes, start: int, name: str) -> list[Tensor]:
    if start + HEADER.size > len(content):
        raise StageError(f"{name} ends inside an XNNPACK header", fix="copy or export the file again")
    zeros, _, length, offset, size, _, _ = HEADER.unpack_from(content, start)
    if any(zeros) or length != HEADER.size:
        return []  # the same four bytes by chance, such as inside weights
    root = Reader(content[start + offset : start + offset + size], SCHEMA, name).root("XNNGraph")
    tensors = []
    for value in root.tables("xvalues"):
        table = value.table("xvalue_union")
        if table is not None and table.name == "XNNQuantizedTensorValue":
            table = table.table("tensor_value")
        if table is not None:
            number = table.integer("datatype")
            kind = TYPES[number] if 0 <= number < len(TYPES) else f"type {number}"
            constant = table.integer("constant_buffer_idx") > 0
            tensors.append(Tensor(kind, tuple(table.numbers("dims")), constant))
    return tensors
