"""Lossless slimming of TFLite files: nothing that a runtime uses is removed or changed.

Deduplicated: equal buffers, vectors, strings, tables, vtables and operator codes. Removed: unreferenced names
of tensors and graphs, minimum and maximum from calibration, empty quantization parameters, shape signatures
that repeat the shape, unused buffers, and the metadata of converters. Tensors and operators keep their
numbers, because delegates and metadata refer to them.

The result is parsed again and compared with the original, field by field.
"""

import struct
from collections.abc import Iterator

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.model_file import IDENTIFIER, ZIP, TfliteFile, data_of, kind_of, parse
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Value, Vector
from edgeopt.formats.wire.flatbuffer_writer import LIMIT, pack

CONVERTERS_METADATA = frozenset(
    {"min_runtime_version", "CONVERSION_METADATA", "buffer_location", "keep_stablehlo_constant"}
)
"""Metadata that converters write and no runtime reads."""
CONVERTERS_DESCRIPTIONS = frozenset({"MLIR Converted.", "TOCO Converted."})
METADATA = "TFLITE_METADATA"
"""The user's own description of inputs and outputs (tensorflow/lite/support metadata)."""
DISPATCH = "DISPATCH_OP"
"""Operators compiled for an accelerator: their options contain file offsets in a vendor format."""
ALIGN = 16
"""Alignment of buffers in bytes, as the schema requires."""


def slimmed(file: TfliteFile) -> bytes:
    """The content of the slimmed file, or the original content if that is not larger.

    Raises:
        StageError: the file contains data that cannot be moved, or the result would differ.
    """
    if any(kind_of(code) == DISPATCH for code in file.model.tables("operator_codes")):
        raise StageError(
            f"{file.name} is compiled for an accelerator: its {DISPATCH} operators contain file offsets",
            fix="slim the file before compiling it",
        )
    if any(
        tensor.integer("buffer") == 0 and data_of(file.model.tables("buffers")[0])
        for subgraph in file.model.tables("subgraphs")
        for tensor in subgraph.tables("tensors")
    ):
        raise StageError(f"{file.name} stores data in buffer 0, which runtimes treat as empty")
    try:
        result = pack(slim_model(file.model), SCHEMA, IDENTIFIER)
    except OverflowError as error:
        raise StageError(f"{file.name} is too large: its tables and weights exceed {LIMIT} bytes") from error
    if file.trailer:
        result += bytes(-len(result) % ALIGN)
        result += _moved(file.trailer, len(file.content) - len(file.trailer), len(result))
    # The file may already be minimal, or written by a packer that fills gaps better.
    if len(result) >= len(file.content):
        return file.content
    verify(file, parse(result, f"the slimmed {file.name}"))
    return result


def slim_model(model: Table) -> Table:
    """The model without unneeded parts; the writer deduplicates equal ones."""
    described = any(entry.text("name") == METADATA for entry in model.tables("metadata"))
    metadata = tuple(entry for entry in model.tables("metadata") if _kept(entry))
    used = set(model.numbers("metadata_buffer"))
    used |= {entry.integer("buffer") for entry in metadata}
    used |= {t.integer("buffer") for s in model.tables("subgraphs") for t in s.tables("tensors")}
    buffers, buffer_map = _merged(model.tables("buffers"), used)
    codes, code_map = _merged_codes(model)
    parts: dict[str, Value] = {
        "operator_codes": codes,
        "buffers": buffers,
        "subgraphs": tuple(
            _subgraph(subgraph, buffer_map, code_map, _named(model, index, described))
            for index, subgraph in enumerate(model.tables("subgraphs"))
        ),
    }
    if metadata:
        parts["metadata"] = tuple(entry.but(buffer=buffer_map[entry.integer("buffer")]) for entry in metadata)
    if legacy := model.numbers("metadata_buffer"):
        numbers = (buffer_map[number] for number in legacy)
        parts["metadata_buffer"] = Vector("i32", struct.pack(f"<{len(legacy)}i", *numbers))
    dropped = ["metadata"]
    if model.text("description") in CONVERTERS_DESCRIPTIONS | {""}:
        dropped.append("description")
    return model.but(*dropped, **parts)


def _kept(entry: Table) -> bool:
    return entry.text("name") not in CONVERTERS_METADATA


def _merged(buffers: tuple[Table, ...], used: set[int]) -> tuple[tuple[Table, ...], dict[int, int]]:
    """The distinct used buffers, and the new number of each old one. Number 0 is always the empty buffer."""
    new_numbers = {b"": 0}
    buffer_map = {}
    for number, buffer in enumerate(buffers):
        if number in used:
            buffer_map[number] = new_numbers.setdefault(data_of(buffer), len(new_numbers))
    empty, *contents = new_numbers
    assert not empty
    filled = (Table("Buffer", {"data": Vector("u8", data)}) for data in contents)
    return (Table("Buffer", {}), *filled), buffer_map


def _merged_codes(model: Table) -> tuple[tuple[Table, ...], dict[int, int]]:
    """The distinct used operator codes, and the new number of each old one."""
    codes = model.tables("operator_codes")
    used = {o.integer("opcode_index") for s in model.tables("subgraphs") for o in s.tables("operators")}
    distinct: dict[object, tuple[int, Table]] = {}
    code_map = {}
    for number, code in enumerate(codes):
        if number in used:
            code_map[number] = distinct.setdefault(plain(code), (len(distinct), code))[0]
    return tuple(code for _, code in distinct.values()), code_map


def _named(model: Table, index: int, described: bool) -> set[int]:
    """Inputs and outputs of a graph that callers can identify only by their tensor names."""
    subgraph = model.tables("subgraphs")[index]
    ends = {*subgraph.numbers("inputs"), *subgraph.numbers("outputs")}
    signatures = [s for s in model.tables("signature_defs") if s.integer("subgraph_index") == index]
    # Metadata of the TFLite Support Library refers to tensors by name.
    if described:
        return ends
    if not signatures and index:
        return set()
    # The names in the first signature replace the tensor names.
    for signature in signatures[:1]:
        for field in ("inputs", "outputs"):
            ends -= {entry.integer("tensor_index") for entry in signature.tables(field)}
    return ends


def _subgraph(
    subgraph: Table, buffer_map: dict[int, int], code_map: dict[int, int], named: set[int]
) -> Table:
    return subgraph.but(
        "name",
        tensors=tuple(
            _tensor(tensor, buffer_map, number in named)
            for number, tensor in enumerate(subgraph.tables("tensors"))
        ),
        operators=tuple(_operator(operator, code_map) for operator in subgraph.tables("operators")),
    )


def _tensor(tensor: Table, buffer_map: dict[int, int], named: bool) -> Table:
    dropped = [] if named else ["name"]
    if _repeats(tensor):
        dropped.append("shape_signature")
    parts: dict[str, Value] = {"buffer": buffer_map[tensor.integer("buffer")]}
    quantization = tensor.table("quantization")
    if quantization is not None:
        if _quantizes(quantization):
            parts["quantization"] = quantization.but("min", "max")
        else:
            dropped.append("quantization")
    return tensor.but(*dropped, **parts)


def _repeats(tensor: Table) -> bool:
    return tensor.numbers("shape_signature") == tensor.numbers("shape")


def _quantizes(quantization: Table) -> bool:
    """Whether the parameters quantize a tensor; minimum and maximum alone are calibration statistics."""
    return bool(quantization.numbers("zero_point") or _filled(quantization, "scale")) or (
        quantization.table("details") is not None
    )


def _filled(table: Table, field: str) -> bool:
    vector = table.vector(field)
    return vector is not None and bool(vector.data)


def _operator(operator: Table, code_map: dict[int, int]) -> Table:
    optional = ("intermediates", "mutating_variable_inputs")
    dropped = [field for field in optional if not _filled(operator, field)]
    return operator.but(*dropped, opcode_index=code_map[operator.integer("opcode_index")])


def _moved(trailer: bytes, before: int, after: int) -> bytes:
    """The data after the tables, adapted to its new position: offsets in a zip archive are absolute.

    ``before`` and ``after`` are the old and the new position. Source: PKWARE APPNOTE.TXT 6.3, sections 4.3.12
    and 4.3.16.
    """
    end = trailer.rfind(b"PK\5\6")
    if not trailer.startswith(ZIP) or end < 0 or end + 22 > len(trailer):
        return trailer
    moved = bytearray(trailer)
    # From the end of central directory record: number of entries, size and offset of the directory.
    count, size, start = struct.unpack_from("<HII", trailer, end + 10)
    if start + size != before + end:
        return trailer  # its offsets are relative to its own start
    struct.pack_into("<I", moved, end + 16, start - before + after)
    at = start - before
    for _ in range(count):
        if trailer[at : at + 4] != b"PK\1\2" or at + 46 > end:
            raise StageError("the zip archive after the model is damaged", fix="download the file again")
        # Each entry has the lengths of name, extra field and comment, and the offset of its local header.
        lengths = struct.unpack_from("<HHH", trailer, at + 28)
        (local,) = struct.unpack_from("<I", trailer, at + 42)
        struct.pack_into("<I", moved, at + 42, local - before + after)
        at += 46 + sum(lengths)
    return bytes(moved)


def plain(value: Value | None) -> object:
    """A value as nested tuples, which can be compared and hashed."""
    if isinstance(value, Table):
        return (value.name, *sorted((name, plain(part)) for name, part in value.fields.items()))
    if isinstance(value, Vector):
        return value.data
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    # As bits, so that NaN equals itself and -0.0 differs from 0.0.
    return struct.pack("<d", value) if isinstance(value, float) else value


def verify(before: TfliteFile, after: TfliteFile) -> None:
    """Compare the content of two files; buffers and operator codes by content instead of number.

    Raises:
        StageError: a part differs; the message names the first one.
    """
    if len(before.trailer.lstrip(b"\0")) != len(after.trailer.lstrip(b"\0")):
        raise StageError(f"slimming {before.name} would change the data after its tables", fix=_REPORT)
    if any((e.start + 4) % ALIGN for e in after.extents if e.owner == "Buffer.data"):
        raise StageError(f"slimming {before.name} would misalign its weights", fix=_REPORT)
    old, new = _facts(before.model), _facts(after.model)
    for (part, expected), (_, actual) in zip(old, new, strict=True):
        if expected != actual:
            raise StageError(f"slimming {before.name} would change {part}", fix=_REPORT)


_REPORT = "this is a bug in edgeopt: no file was written; please report it with the file"


def _facts(model: Table) -> Iterator[tuple[str, object]]:
    """The parts of a model that slimming must preserve, each with its name."""
    buffers = [data_of(buffer) for buffer in model.tables("buffers")]
    codes = [plain(code) for code in model.tables("operator_codes")]
    legacy = [buffers[number] for number in model.numbers("metadata_buffer")]
    entries = [(e.text("name"), buffers[e.integer("buffer")]) for e in model.tables("metadata") if _kept(e)]
    described = model.text("description")
    yield "its description", "" if described in CONVERTERS_DESCRIPTIONS else described
    yield "its metadata", (legacy, entries)
    shared = ("operator_codes", "subgraphs", "buffers", "metadata_buffer", "metadata", "description")
    yield "its signatures", plain(model.but(*shared))
    yield "the number of graphs", len(model.tables("subgraphs"))
    for index, subgraph in enumerate(model.tables("subgraphs")):
        tensors, operators = subgraph.tables("tensors"), subgraph.tables("operators")
        yield (
            f"graph {index}",
            (plain(subgraph.but("name", "tensors", "operators")), len(tensors), len(operators)),
        )
        described_ends = any(name == METADATA for name, _ in entries)
        named = _named(model, index, described_ends)
        for number, tensor in enumerate(tensors):
            quantization = tensor.table("quantization")
            yield (
                f"tensor {number} of graph {index}",
                (
                    buffers[tensor.integer("buffer")],
                    plain(tensor.but("buffer", "name", "quantization", "shape_signature")),
                    plain(tensor.vector("shape_signature")) if not _repeats(tensor) else None,
                    plain(quantization.but("min", "max"))
                    if quantization is not None and _quantizes(quantization)
                    else None,
                    tensor.text("name") if number in named else "",
                ),
            )
        for number, operator in enumerate(operators):
            bare = {
                field: value
                for field, value in operator.but("opcode_index").fields.items()
                if not (isinstance(value, Vector) and not value.data and field not in ("inputs", "outputs"))
            }
            yield (
                f"operator {number} of graph {index}",
                (codes[operator.integer("opcode_index")], plain(Table("Operator", bare))),
            )
