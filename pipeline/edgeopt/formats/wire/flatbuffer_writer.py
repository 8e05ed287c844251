"""FlatBuffers writer that minimizes the file size without changing the content.

Every distinct string, vector, table and vtable is written once, however many references it has. The fields of
a table are sorted by size, so that it needs no padding, and small objects fill the gaps before aligned ones.
The output is deterministic.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from edgeopt.formats.wire.flatbuffer import SCALARS, Field, Schema, Table, Value, Vector

HEADER = 8
"""Bytes before the first object: the offset of the root table and the file identifier."""
LIMIT = (1 << 31) - 1
"""Maximum file size: the range of signed 32-bit offsets."""


class _Place(NamedTuple):
    """Alignment of an object: it starts at a multiple of ``step`` plus ``rest``."""

    step: int
    rest: int

    def after(self, position: int) -> int:
        return position + (self.rest - position) % self.step


class _Object(NamedTuple):
    """Bytes to write; ``links`` are positions of offsets within them, and the numbers of their targets."""

    body: bytes
    place: _Place
    links: tuple[tuple[int, int], ...] = ()
    vtable: int | None = None


def pack(root: Table, schema: Schema, identifier: bytes) -> bytes:
    """Serialize ``root`` as a FlatBuffer.

    Raises:
        OverflowError: the result would exceed the range of offsets.
    """
    objects = _Objects(schema)
    last = objects.table(root)
    positions, size = _layout(objects.known)
    if size > LIMIT:
        raise OverflowError(f"a FlatBuffer of {size} bytes")
    content = bytearray(size)
    struct.pack_into("<I4s", content, 0, positions[last], identifier)
    for number, item in enumerate(objects.known):
        at = positions[number]
        content[at : at + len(item.body)] = item.body
        for where, target in item.links:
            struct.pack_into("<I", content, at + where, positions[target] - at - where)
        if item.vtable is not None:
            struct.pack_into("<i", content, at, at - positions[item.vtable])
    return bytes(content)


class _Objects:
    """All distinct objects, each after the objects that it references."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.known: dict[_Object, int] = {}

    def _number(self, item: _Object) -> int:
        return self.known.setdefault(item, len(self.known))

    def table(self, table: Table) -> int:
        """Add a table and everything below it; returns its number."""
        parts: list[tuple[int, int, bytes, int | None]] = []
        for slot, field in enumerate(self.schema.tables[table.name]):
            if field is None or field.name not in table.fields:
                continue
            value = table.fields[field.name]
            if isinstance(value, int | float):
                raw, link = struct.pack(SCALARS[field.type], value), None
                if raw == struct.pack(SCALARS[field.type], field.default):
                    continue
            else:
                raw, link = bytes(4), self._child(value, field)
            parts.append((-len(raw), slot, raw, link))
        parts.sort(key=lambda part: part[:2])
        slots: dict[int, int] = {}
        links: list[tuple[int, int]] = []
        body = bytearray(4)
        for _, slot, raw, link in parts:
            slots[slot] = len(body)
            if link is not None:
                links.append((len(body), link))
            body += raw
        count = max(slots, default=-1) + 1
        vtable = struct.pack(
            f"<{count + 2}H", 2 * count + 4, len(body), *(slots.get(slot, 0) for slot in range(count))
        )
        # Fields of 8 bytes come first and must be aligned to 8; the 4-byte vtable offset precedes them.
        place = _Place(8, 4) if parts and parts[0][0] == -8 else _Place(4, 0)
        return self._number(
            _Object(bytes(body), place, tuple(links), self._number(_Object(vtable, _Place(2, 0))))
        )

    def _child(self, value: Value, field: Field) -> int:
        if isinstance(value, Table):
            return self.table(value)
        if isinstance(value, Vector):
            return self._number(_leaf(value, field))
        assert isinstance(value, tuple)
        entries = [self.table(entry) for entry in value]
        body = struct.pack("<I", len(entries)) + bytes(4 * len(entries))
        links = tuple((4 + 4 * index, entry) for index, entry in enumerate(entries))
        return self._number(_Object(body, _Place(4, 0), links))


def _leaf(vector: Vector, field: Field) -> _Object:
    if vector.type == "str":
        return _Object(struct.pack("<I", len(vector.data)) + vector.data + b"\0", _Place(4, 0))
    width = struct.calcsize(SCALARS[vector.type])
    step = max(4, width, field.align)
    # The alignment applies to the data, which the 4-byte length precedes.
    body = struct.pack("<I", len(vector.data) // width) + vector.data
    return _Object(body, _Place(step, (step - 4) % step))


def _layout(objects: dict[_Object, int]) -> tuple[dict[int, int], int]:
    """The position of each object, and the total size.

    Offsets are unsigned and point forwards, except those to vtables. Objects with references are therefore
    written first, in reverse order of creation; objects without references can follow anywhere.
    """
    positions: dict[int, int] = {}
    end = HEADER
    small, wide = _Pool(), []
    for item, number in reversed(objects.items()):
        if not (item.links or item.vtable is not None):
            if item.place.step > 8:
                wide.append((item, number))
            else:
                small.add(item, number)
            continue
        positions[number] = item.place.after(end)
        end = positions[number] + len(item.body)
    for item, number in reversed(wide):
        start = item.place.after(end)
        # Weight buffers are aligned to 16 bytes: small objects fill the gap before each of them.
        while start > end and (fit := small.take_best(end, start)):
            positions[fit.number] = fit.start
            end = fit.end
        positions[number] = item.place.after(end)
        end = positions[number] + len(item.body)
    while fit := small.take_best(end, None):
        positions[fit.number] = fit.start
        end = fit.end
    return positions, end


class _Fit(NamedTuple):
    number: int
    start: int
    end: int


class _Pool:
    """Objects without references, by size and alignment."""

    def __init__(self) -> None:
        self._objects: dict[tuple[int, _Place], list[int]] = defaultdict(list)

    def add(self, item: _Object, number: int) -> None:
        self._objects[len(item.body), item.place].append(number)

    def take_best(self, start: int, end: int | None) -> _Fit | None:
        """Remove and return the best fit at ``start``: the least padding before it, then the largest size.

        Without ``end``, sizes that keep the next object aligned are preferred.
        """
        best = min(self._candidates(start, end), default=None)
        if best is None:
            return None
        *_, at, size, place = best
        numbers = self._objects[size, place]
        number = numbers.pop()
        if not numbers:
            del self._objects[size, place]
        return _Fit(number, at, at + size)

    def _candidates(self, start: int, end: int | None) -> Iterator[tuple[int, int, int, int, int, _Place]]:
        for size, place in self._objects:
            at = place.after(start)
            if end is None:
                # Sizes that are not a multiple of 4 come last: after them, everything would need padding.
                yield (size % 4 > 0, at - start - place.step, -size, at, size, place)
            elif at + size <= end:
                yield (0, at - start, -size, at, size, place)
