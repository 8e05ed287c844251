"""Normalization of TorchScript archives: the same module always produces the same small file.

torch numbers the classes of a module by a counter of the whole process, records the source line of every
operator with local paths, and stores the constants of the lite interpreter twice.
"""

import hashlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeopt.config.files import CHUNK
from edgeopt.errors import StageError
from edgeopt.formats.wire import bounded

MANGLED = re.compile(r"___torch_mangle_\d+")
_NOISE = (".data/serialization_id", ".data/version", ".debug_pkl", "mobile_debug_handles.pkl")
"""Suffixes of members that do not affect the computation."""
VERSIONS = frozenset({"version", ".data/version"})
WRITTEN_BY_TORCH = VERSIONS | {".data/serialization_id"}


def normalize(path: Path) -> None:
    """Rewrite a ``.pt`` or ``.ptl`` archive in place: stable class names, no source lines, no duplicates."""
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    records = {name: bytes(reader.get_record(name)) for name in reader.get_all_records()}
    del reader
    versions = [content for name, content in records.items() if name in VERSIONS]
    records = {
        name: content
        for name, content in records.items()
        if not name.endswith(".debug_pkl") and name not in WRITTEN_BY_TORCH
    }
    names = _stable_names(records)
    duplicates = _duplicates(records)

    def renamed(text: str) -> str:
        return duplicates.get(text) or MANGLED.sub(lambda match: names.get(match[0], match[0]), text)

    # torch's own writer starts every record at an aligned offset; zipfile does not.
    writer: Any = torch._C.PyTorchFileWriter(str(path))
    # The version says what the operators mean, such as how integers are divided. Without it, torch writes an
    # old one, and loading then rewrites operators.
    writer.set_min_version(max(int(version) for version in versions))
    for name, content in records.items():
        if name.removeprefix("constants/") in duplicates:
            continue
        if name.endswith(".pkl"):
            content = rename_in_pickle(content, renamed)
        elif name.endswith(".py"):
            content = renamed(content.decode()).encode()
        writer.write_record(renamed(name), content, len(content))
    writer.write_end_of_file()


def _stable_names(records: dict[str, bytes]) -> dict[str, str]:
    """Map mangled names to names numbered from 0 in the same order."""
    mangled: set[str] = set()
    for name, content in records.items():
        mangled.update(MANGLED.findall(name))
        if name.endswith((".pkl", ".py")):
            # latin-1 decodes any bytes; the names themselves are ASCII.
            mangled.update(MANGLED.findall(content.decode("latin-1")))
    ordered = sorted(mangled, key=lambda text: int(text.rpartition("_")[2]))
    return {old: f"___torch_mangle_{index}" for index, old in enumerate(ordered)}


def _duplicates(records: dict[str, bytes]) -> dict[str, str]:
    """Map constants to an earlier constant of equal content, by the names that pickles refer to."""
    first: dict[str, str] = {}
    duplicates = {}
    for name, content in records.items():
        short = name.removeprefix("constants/")
        if short != name and name.endswith(".storage"):
            original = first.setdefault(hashlib.sha256(content).hexdigest(), short)
            if original != short:
                duplicates[short] = original
    return duplicates


def rename_in_pickle(content: bytes, rename: Callable[[str], str]) -> bytes:
    """Replace the strings and class names in a pickle without loading it."""
    import pickletools

    pieces = []
    opcodes = list(pickletools.genops(content))
    # An opcode ends where the next one starts: pickletools reports positions, not lengths.
    ends = [position for _, _, position in opcodes[1:]] + [len(content)]
    for (code, argument, start), end in zip(opcodes, ends, strict=True):
        piece = content[start or 0 : end]
        if code.name == "BINUNICODE" and isinstance(argument, str):
            text = rename(argument).encode()
            piece = b"X" + struct.pack("<I", len(text)) + text
        elif code.name == "GLOBAL" and isinstance(argument, str):
            module, _, name = argument.partition(" ")
            piece = f"c{rename(module)}\n{rename(name)}\n".encode()
        pieces.append(piece)
    return b"".join(pieces)


def member_digests(path: Path) -> dict[str, str]:
    """SHA-256 of each member that affects the computation, by its name without the archive's folder.

    Raises:
        StageError: the archive is damaged.
    """
    digests: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in bounded.member_names(archive):
                inner = name.partition("/")[2] or name
                if not inner.endswith(_NOISE):
                    content = hashlib.sha256()
                    with archive.open(name) as member:
                        while piece := member.read(CHUNK):
                            content.update(piece)
                    digests[inner] = content.hexdigest()
    except (*bounded.MALFORMED, zlib.error) as error:
        raise StageError(
            f"{path.name} is damaged: {error}", fix="download or export the file again"
        ) from error
    return digests
