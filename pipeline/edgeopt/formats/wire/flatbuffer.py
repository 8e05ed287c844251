"""FlatBuffers reader driven by a schema, with bounds checks on every offset.

The result consists of plain values: a `Table` contains scalars, `Vector`s, other tables and tuples of tables.
Damaged or hostile input raises an error after work linear in the file size: an object with many references is
read once, and the number of references and the total size of all vectors are bounded.

Layout: https://flatbuffers.dev/internals/
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from edgeopt.errors import StageError

SCALARS = {
    "bool": "<?", "i8": "<b", "u8": "<B", "i16": "<h", "u16": "<H", "i32": "<i", "u32": "<I", "i64": "<q",
    "u64": "<Q", "f32": "<f", "f64": "<d",
}  # fmt: skip
_OFFSET = struct.Struct("<I")
_SIGNED = struct.Struct("<i")
_SHORT = struct.Struct("<H")


class UnknownPartError(StageError):
    """The file is intact, but contains a field or union member unknown to this version."""


class Field(NamedTuple):
    """One field of a table. ``type`` is a scalar type, ``str``, or the name of a table or union."""

    name: str
    type: str
    vector: bool
    union: bool
    default: int
    align: int


class Schema:
    """Tables and unions of a file type; parsed on first use from text as in `formats.tflite.files.schema`."""

    def __init__(self, text: str, unions: Mapping[str, tuple[str, ...]]) -> None:
        self.text = text
        self.unions = unions

    @cached_property
    def tables(self) -> dict[str, tuple[Field | None, ...]]:
        """The fields of each table, in slot order."""
        found: dict[str, tuple[Field | None, ...]] = {
            member: () for members in self.unions.values() for member in members
        }
        for line in self.text.replace("\n    ", " ").split("\n"):
            if line.strip():
                name, _, fields = line.partition(":")
                found[name] = tuple(_field(text) for text in fields.split())
        return found


def _field(text: str) -> Field | None:
    if text == "-":
        return None
    name, _, kind = text.partition(":")
    kind, _, default = kind.partition("=")
    kind, _, align = kind.partition("@")
    return Field(name, kind.strip("[]<>"), kind[0] == "[", kind[0] == "<", int(default or 0), int(align or 0))


@dataclass(frozen=True, slots=True)
class Vector:
    """A string (``str``) or a vector of scalars, as the bytes in the file."""

    type: str
    data: bytes

    def numbers(self) -> tuple[Any, ...]:
        """The scalars."""
        form = SCALARS[self.type]
        count = len(self.data) // struct.calcsize(form)
        return struct.unpack(f"<{count}{form[1]}", self.data)

    def text(self) -> str:
        """The string."""
        return self.data.decode(errors="replace")


class Table:
    """A table of type ``name``. ``fields`` contains the present fields; all others have their default."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: "Mapping[str, Value]") -> None:
        self.name = name
        self.fields = fields

    def integer(self, field: str, default: int = 0) -> int:
        """A scalar field."""
        value = self.fields.get(field, default)
        assert isinstance(value, int | float)  # guaranteed by the schema
        return int(value)

    def vector(self, field: str) -> Vector | None:
        """A string or a vector of scalars."""
        value = self.fields.get(field)
        assert value is None or isinstance(value, Vector)
        return value

    def numbers(self, field: str) -> list[int]:
        """A vector of integers; empty if absent."""
        value = self.vector(field)
        return [] if value is None else [int(number) for number in value.numbers()]

    def text(self, field: str) -> str:
        """A string; empty if absent."""
        value = self.vector(field)
        return "" if value is None else value.text()

    def table(self, field: str) -> "Table | None":
        """A reference to a table."""
        value = self.fields.get(field)
        assert value is None or isinstance(value, Table)
        return value

    def tables(self, field: str) -> "tuple[Table, ...]":
        """A vector of tables; empty if absent."""
        value = self.fields.get(field, ())
        assert isinstance(value, tuple)
        return value

    def but(self, *dropped: str, **replaced: "Value") -> "Table":
        """A copy without the ``dropped`` fields and with others replaced."""
        kept = {key: value for key, value in self.fields.items() if key not in dropped}
        return Table(self.name, {**kept, **replaced})


Value: TypeAlias = int | float | Vector | Table | tuple[Table, ...]


class Extent(NamedTuple):
    """Bytes ``start`` to ``end`` of a file: a ``Table``, a ``vtable``, or the target of ``Table.field``.

    ``vector`` is the value of that field, unless it consists of tables.
    """

    start: int
    end: int
    owner: str
    vector: Vector | None = None


class Reader:
    """Reader of one FlatBuffer. ``extents`` records the bytes read so far and their purpose.

    Raises:
        StageError: from any method, if the content does not match the schema.
    """

    def __init__(self, content: bytes, schema: Schema, name: str) -> None:
        self.content = content
        self.schema = schema
        self.name = name
        self.extents: list[Extent] = []
        self._tables: dict[tuple[int, str], Table] = {}
        self._vectors: dict[tuple[int, str], Vector] = {}
        self._lists: dict[tuple[int, str], tuple[Table, ...]] = {}
        self._vtables: dict[int, tuple[int, ...]] = {}
        # Budgets that a well-formed file cannot exceed: every reference takes 4 bytes, and no two vectors
        # overlap. They bound the work for files whose offsets share or overlap objects on purpose.
        self._references = len(content)
        self._bytes = 2 * len(content)

    def root(self, kind: str) -> Table:
        """The root table."""
        return self._table(self._follow(0), kind)

    def region(self, start: int, size: int, owner: str) -> Vector:
        """Bytes that a table references by absolute offset and size, outside of the FlatBuffer itself."""
        key = (start, f"region of {size}")
        if key not in self._vectors:
            self._vectors[key] = Vector("u8", self._bounded(start, size))
            self.extents.append(Extent(start, start + size, owner, self._vectors[key]))
        return self._vectors[key]

    def _damaged(self, where: int, why: str) -> StageError:
        return StageError(
            f"{self.name} is damaged: at byte {where} of {len(self.content)}, {why}",
            fix="download or export the file again",
        )

    def _unpack(self, form: struct.Struct, where: int) -> int:
        if not 0 <= where <= len(self.content) - form.size:
            raise self._damaged(where, "an offset points outside the file")
        return int(form.unpack_from(self.content, where)[0])

    def _follow(self, where: int) -> int:
        self._references -= 1
        if self._references < 0:
            raise self._damaged(where, "there are more references than bytes in the file")
        return where + self._unpack(_OFFSET, where)

    def _bounded(self, start: int, size: int) -> bytes:
        if size > len(self.content) - start:
            raise self._damaged(start, f"{size} bytes of data extend beyond the end of the file")
        self._bytes -= size
        if self._bytes < 0:
            raise self._damaged(start, "vectors overlap")
        return self.content[start : start + size]

    def _vtable(self, where: int) -> tuple[int, ...]:
        start = where - self._unpack(_SIGNED, where)
        if start not in self._vtables:
            size = self._unpack(_SHORT, start)
            if size < 4 or size % 2:
                raise self._damaged(start, f"a vtable has the invalid size {size}")
            raw = self._bounded(start, size)
            self._vtables[start] = struct.unpack(f"<{size // 2}H", raw)
            self.extents.append(Extent(start, start + size, "vtable"))
        return self._vtables[start]

    def _table(self, where: int, kind: str) -> Table:
        if (where, kind) in self._tables:
            return self._tables[where, kind]
        _, size, *slots = self._vtable(where)
        known = self.schema.tables[kind]
        if any(slots[len(known) :]):
            raise UnknownPartError(
                f"{self.name} contains a {kind} with unknown fields",
                fix="the file is newer than this version of edgeopt: use it unchanged, or update edgeopt",
            )
        self._bounded(where, size)
        fields: dict[str, Value] = {}
        table = Table(kind, fields)
        self.extents.append(Extent(where, where + size, kind))
        for field, slot in zip(known, slots, strict=False):
            if slot and field is not None:
                value = self._value(where + slot, field, table)
                if value is not None:
                    fields[field.name] = value
        self._tables[where, kind] = table
        return table

    def _value(self, where: int, field: Field, table: Table) -> Value | None:
        if field.type in SCALARS and not field.vector:
            form = struct.Struct(SCALARS[field.type])
            self._unpack(form, where)
            value: int | float = form.unpack_from(self.content, where)[0]
            # An explicitly written default is equivalent to an absent field; both compare equal this way.
            return None if form.pack(value) == form.pack(field.default) else value
        place = self._follow(where)
        if field.union:
            return self._union(place, field, table)
        if field.type in self.schema.tables:
            return self._list(place, field, table) if field.vector else self._table(place, field.type)
        return self._leaf(place, field, table)

    def _union(self, place: int, field: Field, table: Table) -> Table | None:
        number = table.integer(f"{field.name}_type")
        members = self.schema.unions[field.type]
        if not number:
            return None
        if number > len(members):
            raise UnknownPartError(
                f"{self.name} contains the unknown {field.type} number {number}",
                fix="the file is newer than this version of edgeopt: use it unchanged, or update edgeopt",
            )
        return self._table(place, members[number - 1])

    def _list(self, place: int, field: Field, table: Table) -> tuple[Table, ...]:
        key = (place, field.type)
        if key not in self._lists:
            count = self._unpack(_OFFSET, place)
            end = place + 4 + 4 * count
            self._bounded(place + 4, 4 * count)
            self.extents.append(Extent(place, end, f"{table.name}.{field.name}"))
            self._lists[key] = tuple(
                self._table(self._follow(at), field.type) for at in range(place + 4, end, 4)
            )
        return self._lists[key]

    def _leaf(self, place: int, field: Field, table: Table) -> Vector:
        key = (place, field.type)
        if key not in self._vectors:
            width = 1 if field.type == "str" else struct.calcsize(SCALARS[field.type])
            size = width * self._unpack(_OFFSET, place)
            self._vectors[key] = Vector(field.type, self._bounded(place + 4, size))
            # A string has a terminating zero, which its length does not include.
            end = min(place + 4 + size + (field.type == "str"), len(self.content))
            self.extents.append(Extent(place, end, f"{table.name}.{field.name}", self._vectors[key]))
        return self._vectors[key]


def expansion(root: Table) -> int:
    """Cost of traversing all references without sharing: 1 per table, 1 per 16 bytes of vector.

    Objects count once per reference, so a few hundred bytes can expand to a tree of any size.
    """
    known: dict[int, int] = {}

    def cost(table: Table) -> int:
        if id(table) not in known:
            known[id(table)] = 1 + sum(map(of_value, table.fields.values()))
        return known[id(table)]

    def of_value(value: Value) -> int:
        if isinstance(value, Table):
            return cost(value)
        if isinstance(value, Vector):
            return len(value.data) // 16
        return sum(map(cost, value)) if isinstance(value, tuple) else 0

    return cost(root)
