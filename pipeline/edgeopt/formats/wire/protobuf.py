"""Protobuf messages read on the wire, without their schema.

The encoding: https://protobuf.dev/programming-guides/encoding/. A large file costs address space, not
memory, and what is not asked for is skipped.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEXT_LIMIT = 64 << 20


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of each field of one message; nested messages are left as bytes.

    Raises:
        ValueError: it is cut off, or not protobuf.
    """
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("it is cut off, or not protobuf")

    while at < end:
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}.get(wire, -1)
        if number == 0 or size < 0 or size > end - at:
            raise ValueError("it is cut off, or not protobuf")
        at += size
        yield number, data[at - size : at]


def messages(data: memoryview, *numbers: int) -> Iterator[memoryview]:
    """The messages at a path of field numbers."""
    for number, value in fields(data):
        if number == numbers[0] and isinstance(value, memoryview):
            if len(numbers) == 1:
                yield value
            else:
                yield from messages(value, *numbers[1:])


def text(data: memoryview, *numbers: int) -> str:
    """The first text at a path of field numbers, or an empty one."""
    found = next(messages(data, *numbers), None)
    return "" if found is None else bytes(found[:TEXT_LIMIT]).decode()


def number(data: memoryview, field: int) -> int:
    """The first whole number in a field, or 0."""
    return next((v for n, v in fields(data) if n == field and isinstance(v, int)), 0)


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """A file as a memory view.

    Raises:
        ValueError: it is empty.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty")
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Slices of the view may live on in a traceback, so the map is left to the garbage collector.
    with memoryview(pages) as view:
        yield view
