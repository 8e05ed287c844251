"""The same TFLite model in fewer bytes: nothing that a runtime computes with is lost or changed.

Written once instead of many times: equal buffers, vectors, strings, tables, vtables and operator codes. Left
out: names of tensors and graphs that nothing asks for, minimum and maximum from calibration, empty
quantization, shape signatures that repeat the shape, buffers without a user, and what converters note about
themselves. Tensors and operators keep their numbers, because delegates and metadata refer to them.

Afterwards the result is read again and compared with the original, field by field.
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
"""What converters write for themselves: no runtime reads it."""
CONVERTERS_DESCRIPTIONS = frozenset({"MLIR Converted.", "TOCO Converted."})
METADATA = "TFLITE_METADATA"
"""The user's own description of inputs and outputs (tensorflow/lite/support metadata)."""
DISPATCH = "DISPATCH_OP"
"""Operators compiled for an accelerator: their options hold places in the file, in a form of their own."""
ALIGN = 16


def slimmed(file: TfliteFile) -> bytes:
    """The bytes of the smaller file, or of the same one where nothing can be saved.

    Raises:
        StageError: when the file holds what cannot be moved, or the result would differ.
    """
    if any(kind_of(code) == DISPATCH for code in file.model.tables("operator_codes")):
        raise StageError(
            f"{file.name} is compiled for an accelerator: its {DISPATCH} operators hold places in the file",
            fix="slim the file before it is compiled",
        )
    if any(
        tensor.integer("buffer") == 0 and data_of(file.model.tables("buffers")[0])
        for subgraph in file.model.tables("subgraphs")
        for tensor in subgraph.tables("tensors")
    ):
        raise StageError(f"{file.name} keeps data in buffer 0, which runtimes take for none")
    try:
        result = pack(slim_model(file.model), SCHEMA, IDENTIFIER)
    except OverflowError as error:
        raise StageError(f"{file.name} is too large: its tables and weights exceed {LIMIT} bytes") from error
    if file.trailer:
        result += bytes(-len(result) % ALIGN)
        result += _moved(file.trailer, len(file.content) - len(file.trailer), len(result))
    if len(result) >= len(file.content):
        return file.content
    verify(file, parse(result, f"the slimmed {file.name}"))
    return result


def slim_model(model: Table) -> Table:
    """The model without what is not needed. Equal parts are shared by the writer."""
    described = any(entry.text("name") == METADATA for entry in model.tables("metadata"))
    metadata = tuple(entry for entry in model.tables("metadata") if _kept(entry))
    used = set(model.numbers("metadata_buffer"))
    used |= {entry.integer("buffer") for entry in metadata}
    used |= {t.integer("buffer") for s in model.tables("subgraphs") for t in s.tables("tensors")}
    buffers, place = _merged(model.tables("buffers"), used)
    codes, code_place = _merged_codes(model)
    parts: dict[str, Value] = {
        "operator_codes": codes,
        "buffers": buffers,
        "subgraphs": tuple(
            _subgraph(subgraph, place, code_place, _named(model, index, described))
            for index, subgraph in enumerate(model.tables("subgraphs"))
        ),
    }
    if metadata:
        parts["metadata"] = tuple(entry.but(buffer=place[entry.integer("buffer")]) for entry in metadata)
    if legacy := model.numbers("metadata_buffer"):
        parts["metadata_buffer"] = Vector("i32", struct.pack(f"<{len(legacy)}i", *(place[n] for n in legacy)))
    dropped = ["metadata"]
    if model.text("description") in CONVERTERS_DESCRIPTIONS | {""}:
        dropped.append("description")
    return model.but(*dropped, **parts)


def _kept(entry: Table) -> bool:
    return entry.text("name") not in CONVERTERS_METADATA


def _merged(buffers: tuple[Table, ...], used: set[int]) -> tuple[tuple[Table, ...], dict[int, int]]:
    """The different buffers that are used, and the new number of each old one. Number 0 is the empty one."""
    places = {b"": 0}
    place = {}
    for number, buffer in enumerate(buffers):
        if number in used:
            place[number] = places.setdefault(data_of(buffer), len(places))
    empty, *contents = places
    assert not empty
    filled = (Table("Buffer", {"data": Vector("u8", data)}) for data in contents)
    return (Table("Buffer", {}), *filled), place


def _merged_codes(model: Table) -> tuple[tuple[Table, ...], dict[int, int]]:
    codes = model.tables("operator_codes")
    used = {o.integer("opcode_index") for s in model.tables("subgraphs") for o in s.tables("operators")}
    kept: dict[object, tuple[int, Table]] = {}
    place = {}
    for number, code in enumerate(codes):
        if number in used:
            place[number] = kept.setdefault(plain(code), (len(kept), code))[0]
    return tuple(code for _, code in kept.values()), place


def _named(model: Table, index: int, described: bool) -> set[int]:
    """Tensors of a graph whose names are all that a caller knows them by."""
    subgraph = model.tables("subgraphs")[index]
    ends = {*subgraph.numbers("inputs"), *subgraph.numbers("outputs")}
    signatures = [s for s in model.tables("signature_defs") if s.integer("subgraph_index") == index]
    if described:
        return ends
    if not signatures and index:
        return set()
    for signature in signatures[:1]:
        for field in ("inputs", "outputs"):
            ends -= {entry.integer("tensor_index") for entry in signature.tables(field)}
    return ends


def _subgraph(subgraph: Table, place: dict[int, int], code_place: dict[int, int], named: set[int]) -> Table:
    return subgraph.but(
        "name",
        tensors=tuple(
            _tensor(tensor, place, number in named)
            for number, tensor in enumerate(subgraph.tables("tensors"))
        ),
        operators=tuple(_operator(operator, code_place) for operator in subgraph.tables("operators")),
    )


def _tensor(tensor: Table, place: dict[int, int], named: bool) -> Table:
    dropped = [] if named else ["name"]
    if _repeats(tensor):
        dropped.append("shape_signature")
    parts: dict[str, Value] = {"buffer": place[tensor.integer("buffer")]}
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
    return bool(quantization.numbers("zero_point") or _filled(quantization, "scale")) or (
        quantization.table("details") is not None
    )


def _filled(table: Table, field: str) -> bool:
    vector = table.vector(field)
    return vector is not None and bool(vector.data)


def _operator(operator: Table, code_place: dict[int, int]) -> Table:
    optional = ("intermediates", "mutating_variable_inputs")
    dropped = [field for field in optional if not _filled(operator, field)]
    return operator.but(*dropped, opcode_index=code_place[operator.integer("opcode_index")])


def _moved(trailer: bytes, before: int, after: int) -> bytes:
    """What follows the tables, for its new place: a zip archive counts from the beginning of the file.

    Source: PKWARE APPNOTE.TXT 6.3, sections 4.3.12 and 4.3.16.
    """
    end = trailer.rfind(b"PK\5\6")
    if not trailer.startswith(ZIP) or end < 0 or end + 22 > len(trailer):
        return trailer
    moved = bytearray(trailer)
    count, size, start = struct.unpack_from("<HII", trailer, end + 10)
    if start + size != before + end:
        return trailer  # it counts from its own beginning, which moves along
    struct.pack_into("<I", moved, end + 16, start - before + after)
    at = start - before
    for _ in range(count):
        if trailer[at : at + 4] != b"PK\1\2" or at + 46 > end:
            raise StageError("the zip archive behind the model is damaged", fix="fetch the file again")
        lengths = struct.unpack_from("<HHH", trailer, at + 28)
        (local,) = struct.unpack_from("<I", trailer, at + 42)
        struct.pack_into("<I", moved, at + 42, local - before + after)
        at += 46 + sum(lengths)
    return bytes(moved)


def plain(value: Value | None) -> object:
    """A value as nested tuples that can be compared and hashed."""
    if isinstance(value, Table):
        return (value.name, *sorted((name, plain(part)) for name, part in value.fields.items()))
    if isinstance(value, Vector):
        return value.data
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    # As bits: NaN is equal to itself, and -0.0 is not 0.0.
    return struct.pack("<d", value) if isinstance(value, float) else value


def verify(before: TfliteFile, after: TfliteFile) -> None:
    """Compare what two files say: buffers and operator codes by content, whatever their number is now.

    Raises:
        StageError: with the first part that differs.
    """
    if len(before.trailer.lstrip(b"\0")) != len(after.trailer.lstrip(b"\0")):
        raise StageError(f"slimming {before.name} would change what follows its tables", fix=_REPORT)
    if any((e.start + 4) % ALIGN for e in after.extents if e.owner == "Buffer.data"):
        raise StageError(f"slimming {before.name} would misalign its weights", fix=_REPORT)
    old, new = _facts(before.model), _facts(after.model)
    for (what, expected), (_, found) in zip(old, new, strict=True):
        if expected != found:
            raise StageError(f"slimming {before.name} would change {what}", fix=_REPORT)


_REPORT = "this is a bug in edgeopt: nothing was written, please report it with the file"


def _facts(model: Table) -> Iterator[tuple[str, object]]:
    """All that matters, part by part, each with its name."""
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
