"""Schema-free reading of the protobuf wire format.

Encoding: https://protobuf.dev/programming-guides/encoding/. Files are memory-mapped, and fields that are not
requested are skipped without being read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEXT_LIMIT = 64 << 20
"""Maximum length of a string in bytes."""


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of one message; nested messages, strings and floats stay bytes.

    Raises:
        ValueError: the message is truncated or not protobuf.
    """
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = 0
        # At most 10 bytes, the length of a 64-bit varint.
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("it is truncated or not protobuf")

    while at < end:
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        # 2 is length-delimited, 1 and 5 are fixed 64 and 32 bits; groups (3, 4) are deprecated and rejected.
        size = varint() if wire_type == 2 else {1: 8, 5: 4}.get(wire_type, -1)
        if number == 0 or size < 0 or size > end - at:
            raise ValueError("it is truncated or not protobuf")
        at += size
        yield number, data[at - size : at]


def messages(data: memoryview, *numbers: int) -> Iterator[memoryview]:
    """All nested messages at a path of field numbers."""
    for number, value in fields(data):
        if number == numbers[0] and isinstance(value, memoryview):
            if len(numbers) == 1:
                yield value
            else:
                yield from messages(value, *numbers[1:])


def text(data: memoryview, *numbers: int) -> str:
    """The string at a path of field numbers; empty if absent. The last one counts, as protobuf demands."""
    last = memoryview(b"")
    for value in messages(data, *numbers):
        last = value
    return bytes(last[:TEXT_LIMIT]).decode()


def number(data: memoryview, field: int) -> int:
    """The first integer in a field; 0 if absent, the default of protobuf."""
    return next((v for n, v in fields(data) if n == field and isinstance(v, int)), 0)


def integers(data: memoryview, field: int) -> list[int]:
    """All integers of a repeated field, packed or not.

    Raises:
        ValueError: the message is truncated or not protobuf.
    """
    found: list[int] = []
    for number, value in fields(data):
        if number == field and isinstance(value, int):
            found.append(value)
        elif number == field and isinstance(value, memoryview):
            found += _varints(value)
    return found


def _varints(data: memoryview) -> list[int]:
    found, value, shift = list[int](), 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value, shift = 0, 0
    return found


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Memory-map a file.

    Raises:
        ValueError: the file is empty.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty")
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Not closed here: slices of the view may outlive this context in a traceback, and closing would raise.
    with memoryview(pages) as view:
        yield view
