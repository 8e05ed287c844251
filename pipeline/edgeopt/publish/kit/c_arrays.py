"""Exact C literals of numbers and arrays."""

from collections.abc import Iterable, Sequence

import numpy as np

from edgeopt.errors import CannotRunError
from edgeopt.model import Array

TYPES = {
    "bool": "uint8_t",
    "uint8": "uint8_t",
    "int8": "int8_t",
    "uint16": "uint16_t",
    "int16": "int16_t",
    "uint32": "uint32_t",
    "int32": "int32_t",
    "uint64": "uint64_t",
    "int64": "int64_t",
    "float32": "float",
    "float64": "double",
}
"""numpy dtype name -> C type."""

_SUFFIX = {"uint16_t": "u", "uint32_t": "u", "uint64_t": "u"}


def c_type(dtype: str, what: str) -> str:
    """The C type for a numpy dtype.

    Raises:
        CannotRunError: no C type represents it.
    """
    if dtype not in TYPES:
        raise CannotRunError(
            f"{what} has type {dtype}, for which no C code can be generated",
            fix=f"supported types: {', '.join(TYPES)}",
        )
    return TYPES[dtype]


def float_literal(value: float) -> str:
    """A C float literal with the digits that identify the float32 uniquely."""
    exact = np.float32(value)
    if not np.isfinite(exact):
        raise CannotRunError(f"{value} has no C literal", fix="check the data and the model's outputs")
    return f"{np.format_float_scientific(exact, unique=True, trim='0', exp_digits=1)}f"


def literals(values: Array) -> list[str]:
    """The values of an array as C literals, in row-major order."""
    flat = values.reshape(-1)
    if flat.dtype.kind == "f" and flat.dtype.itemsize <= 4:
        return [float_literal(value) for value in flat.tolist()]
    if flat.dtype.kind == "f":
        return [np.format_float_scientific(value, unique=True, trim="0") for value in flat.tolist()]
    ctype = TYPES[flat.dtype.name]
    if ctype in ("int64_t", "uint64_t"):
        return [f"{'U' if ctype[0] == 'u' else ''}INT64_C({value})" for value in flat.tolist()]
    # INT32_MIN has no literal: the minus sign is an operator, and 2147483648 does not fit int.
    lowest = -(2**31)
    suffix = _SUFFIX.get(ctype, "")
    return [f"({lowest + 1} - 1)" if v == lowest else f"{int(v)}{suffix}" for v in flat.tolist()]


def rows(items: Iterable[str], indent: int = 4, width: int = 100) -> str:
    """Comma-separated items in lines of about ``width`` characters."""
    listed: Sequence[str] = list(items)
    longest = max(map(len, listed), default=1) + 2
    per_line = max(1, (width - indent) // longest)
    lines = (listed[start : start + per_line] for start in range(0, len(listed), per_line))
    return ",\n".join(" " * indent + ", ".join(line) for line in lines)


def hexadecimal(data: bytes) -> str:
    """Bytes as lines of hexadecimal literals."""
    return rows(f"0x{byte:02x}" for byte in data)
