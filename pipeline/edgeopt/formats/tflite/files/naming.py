"""Names of outputs in the signature of a TFLite file."""

from collections.abc import Sequence

from edgeopt.formats.tflite.files.model_file import IDENTIFIER, TfliteFile
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack


def with_output_names(file: TfliteFile, names: Sequence[str]) -> bytes:
    """The content of the file with these names, one per output, in its first signature.

    A file without a signature for every output is returned as it is.
    """
    signatures = file.model.tables("signature_defs")
    outputs = file.model.tables("subgraphs")[0].numbers("outputs")
    if not signatures or len(outputs) != len(names):
        return file.content
    entries = signatures[0].tables("outputs")
    if sorted(entry.integer("tensor_index") for entry in entries) != sorted(outputs):
        return file.content
    # A tensor that is returned twice has two entries.
    left: dict[int, list[str]] = {}
    for number, name in zip(outputs, names, strict=True):
        left.setdefault(number, []).append(name)
    named = tuple(_named(entry, left[entry.integer("tensor_index")].pop(0)) for entry in entries)
    model = file.model.but(signature_defs=(signatures[0].but(outputs=named), *signatures[1:]))
    return pack(model, SCHEMA, IDENTIFIER)


def _named(entry: Table, name: str) -> Table:
    return entry.but(name=Vector("str", name.encode()))
