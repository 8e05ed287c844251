"""Tables of values and indices of 1 to 7 bits, as the DECODE operator of TensorFlow Lite Micro reads them.

Source: tflite-micro, ``compression/lut.py`` and ``kernels/decode_state_lut.{h,cc}``.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError

BITS = range(1, 8)
"""Numbers of bits of an index."""
WHOLE = 15
"""The axis that stands for one table for the whole tensor."""


class Coded(NamedTuple):
    """Indices as stored, and the tables: ``stride`` values for each position of ``axis``."""

    indices: bytes
    tables: bytes
    bits: int
    axis: int
    stride: int

    @property
    def size(self) -> int:
        return len(self.indices) + len(self.tables)


def coded(values: NDArray[np.int8], axis: int | None) -> Coded | None:
    """Encode a tensor with one table, or with one for each position of ``axis``: the first or the last one.

    None if a table would have more than 128 values.
    """
    moved = values[np.newaxis] if axis is None else np.moveaxis(values, axis, 0)
    rows = moved.reshape(len(moved), -1)
    distinct = [np.unique(row) for row in rows]
    stride = max(map(len, distinct), default=0)
    bits = max(1, (stride - 1).bit_length())
    if bits not in BITS or not values.size:
        return None
    found = [np.searchsorted(known, row) for known, row in zip(distinct, rows, strict=True)]
    numbers = np.stack(found).reshape(moved.shape)
    numbers = numbers[0] if axis is None else np.moveaxis(numbers, 0, axis)
    each = numbers.reshape(-1, 1) >> np.arange(bits - 1, -1, -1) & 1
    indices = np.packbits(each.astype(np.uint8)).tobytes()
    tables = b"".join(np.pad(known, (0, stride - len(known))).tobytes() for known in distinct)
    return Coded(indices, tables, bits, WHOLE if axis is None else axis, stride)


def decoded(
    indices: bytes, tables: bytes, bits: int, axis: int, stride: int, shape: tuple[int, ...], name: str
) -> NDArray[np.int8]:
    """The tensor that `coded` encoded.

    Raises:
        StageError: the indices or the tables are damaged; the message begins with ``name``.
    """
    damaged = StageError(
        f"{name} is damaged: the tables of its compressed weights do not match", fix="export the file again"
    )
    count = int(np.prod(shape))
    if bits not in BITS or 8 * len(indices) < count * bits or (axis != WHOLE and axis >= len(shape)):
        raise damaged
    each = np.unpackbits(np.frombuffer(indices, np.uint8), count=count * bits).reshape(count, bits)
    numbers = (each.astype(np.int64) << np.arange(bits - 1, -1, -1)).sum(axis=1).reshape(shape)
    channels = 1 if axis == WHOLE else shape[axis]
    if len(tables) < channels * stride or (numbers.size and int(numbers.max()) >= stride):
        raise damaged
    values = np.frombuffer(tables, np.int8, channels * stride)
    if axis != WHOLE:
        places = np.arange(channels).reshape([-1 if each == axis else 1 for each in range(len(shape))])
        numbers = places * stride + numbers
    found: NDArray[np.int8] = values[numbers]
    return found
