"""TorchScript archives, rewritten so that the same module always gives the same small file.

torch numbers the classes of a module by how many the process has seen before, notes the source line of
every operator with paths of the machine, and stores constants of the lite interpreter twice.
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
"""Members that say nothing about what is computed."""
WRITTEN_BY_TORCH = frozenset({"version", ".data/version", ".data/serialization_id"})


def normalize(path: Path) -> None:
    """Rewrite a ``.pt`` or ``.ptl`` archive in place: stable class names, no source lines, no duplicates."""
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    records = {name: bytes(reader.get_record(name)) for name in reader.get_all_records()}
    del reader
    records = {
        name: content
        for name, content in records.items()
        if not name.endswith(".debug_pkl") and name not in WRITTEN_BY_TORCH
    }
    names = _stable_names(records)
    twins = _twins(records)

    def renamed(text: str) -> str:
        return twins.get(text) or MANGLED.sub(lambda found: names.get(found[0], found[0]), text)

    writer: Any = torch._C.PyTorchFileWriter(str(path))
    for name, content in records.items():
        if name.removeprefix("constants/") in twins:
            continue
        if name.endswith(".pkl"):
            content = rename_in_pickle(content, renamed)
        elif name.endswith(".py"):
            content = renamed(content.decode()).encode()
        writer.write_record(renamed(name), content, len(content))
    writer.write_end_of_file()


def _stable_names(records: dict[str, bytes]) -> dict[str, str]:
    """Mangled names in the order of their numbers, counted from 0."""
    found: set[str] = set()
    for name, content in records.items():
        found.update(MANGLED.findall(name))
        if name.endswith((".pkl", ".py")):
            found.update(MANGLED.findall(content.decode("latin-1")))
    ordered = sorted(found, key=lambda text: int(text.rpartition("_")[2]))
    return {old: f"___torch_mangle_{index}" for index, old in enumerate(ordered)}


def _twins(records: dict[str, bytes]) -> dict[str, str]:
    """Constants of the lite interpreter with the content of an earlier one, by the name in its pickles."""
    first: dict[str, str] = {}
    twins = {}
    for name, content in records.items():
        short = name.removeprefix("constants/")
        if short != name and name.endswith(".storage"):
            known = first.setdefault(hashlib.sha256(content).hexdigest(), short)
            if known != short:
                twins[short] = known
    return twins


def rename_in_pickle(content: bytes, rename: Callable[[str], str]) -> bytes:
    """Change the strings and class names in a pickle without loading it."""
    import pickletools

    pieces = []
    steps = list(pickletools.genops(content))
    ends = [position for _, _, position in steps[1:]] + [len(content)]
    for (code, argument, start), end in zip(steps, ends, strict=True):
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
    """The digests of an archive's members but for noise, by their names without the archive's own.

    Raises:
        StageError: the archive is damaged.
    """
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in bounded.member_names(archive):
                inner = name.partition("/")[2] or name
                if not inner.endswith(_NOISE):
                    content = hashlib.sha256()
                    with archive.open(name) as member:
                        while piece := member.read(CHUNK):
                            content.update(piece)
                    found[inner] = content.hexdigest()
    except (*bounded.MALFORMED, zlib.error) as error:
        raise StageError(f"{path.name} is damaged: {error}", fix="fetch or export the file again") from error
    return found
