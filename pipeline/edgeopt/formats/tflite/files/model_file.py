"""TFLite files: tables, buffers stored outside the tables, and appended data."""

from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.schema import OPERATORS, SCHEMA
from edgeopt.formats.wire.flatbuffer import Extent, Reader, Table, expansion

IDENTIFIER = b"TFL3"
ZIP = b"PK\3\4"
CUSTOM = OPERATORS.index("CUSTOM")


class TfliteFile(NamedTuple):
    """A loaded file. Buffers and options stored outside the tables are included in ``model``."""

    name: str
    content: bytes
    model: Table
    extents: tuple[Extent, ...]
    """The purpose of each byte range, in file order."""
    trailer: bytes
    """Data after everything that the tables reference, such as a zip archive with labels."""


def load(path: Path) -> TfliteFile:
    """Load a file and check all its offsets and indices.

    Raises:
        StageError: the file is not a TFLite model, is damaged, or contains unknown fields.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageError(f"cannot read {path}: {error.strerror}") from error
    return parse(content, path.name)


def parse(content: bytes, name: str) -> TfliteFile:
    """Parse the content of a file; ``name`` identifies it in messages.

    Raises:
        StageError: as `load`.
    """
    if content[4:8] != IDENTIFIER:
        raise StageError(
            f"{name} is not a TFLite model: the identifier TFL3 is missing",
            fix="use a file written by a TFLite converter",
        )
    reader = Reader(content, SCHEMA, name)
    model = reader.root("Model")
    # Shared objects make real models smaller, but never expand beyond the size of the file.
    if expansion(model) > len(content) + 4096:
        raise StageError(f"{name} is damaged: its tables reference each other more often than a model's can")
    model = model.but(
        buffers=tuple(_buffer(buffer, reader) for buffer in model.tables("buffers")),
        subgraphs=tuple(_subgraph(subgraph, reader) for subgraph in model.tables("subgraphs")),
    )
    _check(model, name)
    reader.extents.append(Extent(0, 8, "Model"))
    extents = tuple(sorted(reader.extents, key=lambda extent: extent[:2]))
    used = max(extent.end for extent in extents)
    trailer = content[used:]
    appended = trailer.lstrip(b"\0")
    # Zeros before an appended archive are alignment; before unknown data they may belong to it.
    if not appended or appended.startswith(ZIP):
        trailer = appended
    return TfliteFile(name, content, model, extents, trailer)


def _buffer(buffer: Table, reader: Reader) -> Table:
    """A buffer with its data inline; files above 2 GB store it after the tables, with offset and size."""
    offset, size = buffer.integer("offset"), buffer.integer("size")
    # Converters write 1 as a placeholder, not as a position.
    if offset <= 1 or not size:
        return buffer.but("offset", "size")
    return buffer.but("offset", "size", data=reader.region(offset, size, "Buffer.data"))


def _subgraph(subgraph: Table, reader: Reader) -> Table:
    return subgraph.but(
        operators=tuple(_operator(operator, reader) for operator in subgraph.tables("operators"))
    )


def _operator(operator: Table, reader: Reader) -> Table:
    prefix = "large_custom_options"
    offset, size = operator.integer(f"{prefix}_offset"), operator.integer(f"{prefix}_size")
    plain = operator.but(f"{prefix}_offset", f"{prefix}_size")
    if offset <= 1 or not size:
        return plain
    return plain.but(custom_options=reader.region(offset, size, "Operator.custom_options"))


def _check(model: Table, name: str) -> None:
    """Check that all indices of tensors, buffers, operator codes and graphs are in range.

    Raises:
        StageError: an index is out of range; the message names the first one.
    """

    def within(numbers: list[int], count: int, what: str, least: int = 0) -> None:
        for number in numbers:
            if not least <= number < count:
                raise StageError(
                    f"{name} is damaged: it refers to {what} {number}, but has only {count}",
                    fix="download or export the file again",
                )

    if model.integer("version") != 3:
        raise StageError(f"{name} has format version {model.integer('version')}, only 3 is supported")
    buffers, subgraphs = len(model.tables("buffers")), model.tables("subgraphs")
    if not subgraphs:
        raise StageError(f"{name} is damaged: it contains no graph")
    for subgraph in subgraphs:
        tensors = len(subgraph.tables("tensors"))
        within([tensor.integer("buffer") for tensor in subgraph.tables("tensors")], buffers, "buffer")
        for field in ("inputs", "outputs"):
            within(subgraph.numbers(field), tensors, "tensor")
        for operator in subgraph.tables("operators"):
            codes = len(model.tables("operator_codes"))
            within([operator.integer("opcode_index")], codes, "operator code")
            for field in ("inputs", "outputs", "intermediates"):
                within(operator.numbers(field), tensors, "tensor", -1)
    within([entry.integer("buffer") for entry in model.tables("metadata")], buffers, "buffer")
    within(model.numbers("metadata_buffer"), buffers, "buffer")
    for signature in model.tables("signature_defs"):
        index = signature.integer("subgraph_index")
        within([index], len(subgraphs), "subgraph")
        for field in ("inputs", "outputs"):
            numbers = [entry.integer("tensor_index") for entry in signature.tables(field)]
            within(numbers, len(subgraphs[index].tables("tensors")), "tensor")


def data_of(buffer: Table) -> bytes:
    """The content of a buffer."""
    vector = buffer.vector("data")
    return b"" if vector is None else vector.data


def kind_of(code: Table) -> str:
    """The name of an operator: built-in, or the code of a custom operator."""
    # Codes above 127 do not fit into the deprecated field; older files have only that one.
    number = max(code.integer("builtin_code"), code.integer("deprecated_builtin_code"))
    if number == CUSTOM:
        return code.text("custom_code") or "CUSTOM"
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"OPERATOR {number}"
