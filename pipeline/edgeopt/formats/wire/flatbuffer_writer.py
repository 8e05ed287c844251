"""Writing FlatBuffers as small as the format allows, without changing what they say.

Every string, vector, table and vtable is written once, however many refer to it. Fields are sorted by size,
so that a table holds no padding, and what is small goes into the gaps before what must be aligned. The same
input gives the same bytes.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from edgeopt.formats.wire.flatbuffer import SCALARS, Field, Schema, Table, Value, Vector

HEADER = 8
"""Bytes before the first object: the offset of the root and the identifier."""
LIMIT = (1 << 31) - 1
"""Bytes that signed offsets can reach."""


class _Place(NamedTuple):
    """Where an object may begin: at a multiple of ``step`` plus ``rest``."""

    step: int
    rest: int

    def after(self, position: int) -> int:
        return position + (self.rest - position) % self.step


class _Object(NamedTuple):
    """Bytes to write, and where in them the offsets of which other objects go."""

    body: bytes
    place: _Place
    links: tuple[tuple[int, int], ...] = ()
    vtable: int | None = None


def pack(root: Table, schema: Schema, identifier: bytes) -> bytes:
    """The FlatBuffer of ``root``.

    Raises:
        OverflowError: when it would be larger than offsets can reach.
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
    """All different objects, each after those that it refers to."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.known: dict[_Object, int] = {}

    def _number(self, item: _Object) -> int:
        return self.known.setdefault(item, len(self.known))

    def table(self, table: Table) -> int:
        """The number of a table, after adding it and all below it."""
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
        # Sorted by size, fields of 8 bytes come first: behind the 4 bytes that lead to the vtable.
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
    # The data is aligned, and the 4 bytes of its length stand before it.
    body = struct.pack("<I", len(vector.data) // width) + vector.data
    return _Object(body, _Place(step, (step - 4) % step))


def _layout(objects: dict[_Object, int]) -> tuple[dict[int, int], int]:
    """The position of each object, and the size of all.

    Offsets only lead forwards, those to vtables excepted. So what refers to others comes first, the latest
    made before all others, and what refers to nothing can lie anywhere behind.
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
        while start > end and (found := small.fitting(end, start)):
            positions[found.number] = found.start
            end = found.end
        positions[number] = item.place.after(end)
        end = positions[number] + len(item.body)
    while found := small.fitting(end, None):
        positions[found.number] = found.start
        end = found.end
    return positions, end


class _Found(NamedTuple):
    number: int
    start: int
    end: int


class _Pool:
    """Objects that can go anywhere, by size and alignment."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, _Place], list[int]] = defaultdict(list)

    def add(self, item: _Object, number: int) -> None:
        self._kept[len(item.body), item.place].append(number)

    def fitting(self, start: int, end: int | None) -> _Found | None:
        """Take out what fits best at ``start``: the least padding before it, and then the largest.

        Where there is no end, one that leaves the next object aligned to 8 is preferred.
        """
        best = min(self._candidates(start, end), default=None)
        if best is None:
            return None
        *_, at, size, place = best
        numbers = self._kept[size, place]
        number = numbers.pop()
        if not numbers:
            del self._kept[size, place]
        return _Found(number, at, at + size)

    def _candidates(self, start: int, end: int | None) -> Iterator[tuple[int, int, int, int, int, _Place]]:
        for size, place in self._kept:
            at = place.after(start)
            if end is None:
                # Odd sizes come last: behind them, all the rest would need padding.
                yield (size % 4 > 0, at - start - place.step, -size, at, size, place)
            elif at + size <= end:
                yield (0, at - start, -size, at, size, place)
