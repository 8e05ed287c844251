"""Size breakdown of PyTorch files: archives by member, ExecuTorch programs by segment."""

import struct
from pathlib import Path

from edgeopt.formats.wire.archive import member_sizes
from edgeopt.plugin.contents import SizeBreakdown

_MEMBERS = (
    ("code/", "code"),
    ("bytecode.pkl", "code"),
    ("data/", "tensors"),
    ("constants/", "tensors"),
    ("weights/", "tensors"),
    (".data/", "metadata"),
    ("extra/", "metadata"),
)
"""Name prefixes of archive members, and the part of the breakdown that each belongs to."""


def read_archive(path: Path, format_name: str) -> SizeBreakdown:
    """Size by member, of any archive that torch writes.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
        ValueError: it has too many members.
    """
    parts = member_sizes(path, _part)
    return SizeBreakdown(file=path.name, format=format_name, size_bytes=path.stat().st_size, parts=parts)


def _part(member: str) -> str:
    inner = member.partition("/")[2]
    for prefix, part in _MEMBERS:
        if inner.startswith(prefix):
            return part
    return inner if inner.endswith(".pkl") else member if "/" not in member else inner


def read_stream(path: Path, format_name: str) -> SizeBreakdown:
    """Size of a pickle as one part: separating its contents would require running it."""
    size = path.stat().st_size
    notes = ("a pickle: its parts are not listed, because reading them would run code",)
    return SizeBreakdown(
        file=path.name, format=format_name, size_bytes=size, parts={"pickle": size}, notes=notes
    )


def read_executorch(path: Path) -> SizeBreakdown:
    """Size by program and data segments, as declared in the extended header.

    Source: https://docs.pytorch.org/executorch/stable/pte-file-format.html

    Raises:
        ValueError: the header does not fit the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(40)
    notes = ("delegate blobs are opaque: layers and types are not listed",)
    if head[8:12] != b"eh00" or len(head) < 32:
        return SizeBreakdown(
            file=path.name, format="executorch", size_bytes=size, parts={"program": size}, notes=notes
        )
    (length,) = struct.unpack_from("<I", head, 12)
    program, base = struct.unpack_from("<QQ", head, 16)
    if program > size or base > size or (base and base < program):
        raise ValueError("its header declares more bytes than the file has")
    # Headers before segment_data_size was added are 24 bytes long: there the segments end with the file.
    declared = struct.unpack_from("<Q", head, 32)[0] if length >= 32 and len(head) == 40 else size - base
    segments = min(declared, size - base) if base else 0
    parts = {
        "program": program,
        "segments (weights and delegates' data)": segments,
        "padding": size - program - segments,
    }
    return SizeBreakdown(
        file=path.name,
        format="executorch",
        size_bytes=size,
        parts={part: count for part, count in parts.items() if count},
        notes=notes,
    )
