"""Byte ledgers of the formats that are containers: zip archives, HDF5, ExecuTorch, safetensors, folders."""

import importlib.util
import json
import struct
import subprocess
import sys
import zipfile
from collections import defaultdict
from math import prod
from pathlib import Path

from edgeopt.errors import MissingPackageError
from edgeopt.formats.arithmetic import Ledger
from edgeopt.formats.wire import bounded
from edgeopt.model import files_of, size_bytes

HDF5_SECONDS = 20

_READ_HDF5 = """
import json, sys
import h5py

sizes, parameters = {}, 0
def visit(name, item):
    global parameters
    if isinstance(item, h5py.Dataset):
        kind = "optimizer state" if name.startswith(("optimizer", "_optimizer")) else "weights"
        part = f"{kind} {item.dtype}"
        sizes[part] = sizes.get(part, 0) + item.id.get_storage_size()
        if kind == "weights":
            parameters += int(item.size or 0)
with h5py.File(sys.argv[1], "r") as file:
    file.visititems(visit)
    for name in file.attrs:
        value = file.attrs.get(name)
        if name.endswith("_config") and isinstance(value, (str, bytes)):
            sizes[name] = len(value)
json.dump([sizes, parameters], sys.stdout)
"""

_MEMBERS = (
    ("code/", "code"),
    ("bytecode.pkl", "code"),
    ("data/", "tensors"),
    ("constants/", "tensors"),
    ("weights/", "tensors"),
    (".data/", "metadata"),
    ("extra/", "metadata"),
)
"""How torch names the members of its archives, and what they are."""


def read_zip(path: Path, format: str) -> Ledger:
    """A ledger by member: Keras archives and all that torch writes.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
        ValueError: it has too many members.
    """
    sums: dict[str, int] = defaultdict(int)
    with zipfile.ZipFile(path) as archive:
        bounded.member_names(archive)
        for entry in archive.infolist():
            if not entry.is_dir():
                sums[_member(entry.filename)] += entry.compress_size
    size = path.stat().st_size
    sums["archive directory and padding"] = size - sum(sums.values())
    return Ledger(file=path.name, format=format, size_bytes=size, parts=_kept(sums))


def _member(name: str) -> str:
    inner = name.partition("/")[2]
    for prefix, part in _MEMBERS:
        if inner.startswith(prefix):
            return part
    return inner if inner.endswith(".pkl") else name if "/" not in name else inner


def read_hdf5(path: Path) -> Ledger:
    """A ledger by dataset type.

    Raises:
        MissingPackageError: h5py is not installed.
        ValueError: the file cannot be read.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingPackageError(f"reading {path.name} needs h5py", fix="pip install 'edgeopt[keras]'")
    # In a process of its own: a damaged file can send the HDF5 library into an endless loop or a crash.
    command = [sys.executable, "-P", "-W", "ignore", "-c", _READ_HDF5, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HDF5_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"its structure cannot be read within {HDF5_SECONDS} seconds") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the HDF5 library crashed on it"]
        raise ValueError(last[0])
    sizes, parameters = json.loads(done.stdout)
    size = path.stat().st_size
    sizes["structure and padding"] = size - sum(sizes.values())
    return Ledger(
        file=path.name, format="hdf5", size_bytes=size, parts=_kept(sizes), parameters=parameters or None
    )


def read_executorch(path: Path) -> Ledger:
    """A ledger of program and data segments, by the extended header.

    Source: https://docs.pytorch.org/executorch/stable/pte-file-format.html

    Raises:
        ValueError: the header does not fit the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(40)
    notes = ("what a delegate compiled is opaque: layers and types are not told",)
    if head[8:12] != b"eh00" or len(head) < 32:
        return Ledger(
            file=path.name, format="executorch", size_bytes=size, parts={"program": size}, notes=notes
        )
    (length,) = struct.unpack_from("<I", head, 12)
    program, base = struct.unpack_from("<QQ", head, 16)
    if program > size or base > size or (base and base < program):
        raise ValueError("its header tells of more bytes than there are")
    held = struct.unpack_from("<Q", head, 32)[0] if length >= 32 and len(head) == 40 else size - base
    segments = min(held, size - base) if base else 0
    parts = {
        "program": program,
        "segments (weights and delegates' data)": segments,
        "padding": size - program - segments,
    }
    return Ledger(file=path.name, format="executorch", size_bytes=size, parts=_kept(parts), notes=notes)


def read_safetensors(path: Path) -> Ledger:
    """A ledger by type.

    Raises:
        ValueError: the header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = bounded.json_value(file.read(min(length, bounded.JSON_LIMIT + 1)), "the header")
    sums: dict[str, int] = defaultdict(int, header=8 + length)
    parameters = 0
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            sums[f"weights {entry['dtype']}"] += end - start
            parameters += prod(entry["shape"])
    sums["padding"] = size - sum(sums.values())
    return Ledger(
        file=path.name, format="safetensors", size_bytes=size, parts=_kept(sums), parameters=parameters
    )


def read_stream(path: Path) -> Ledger:
    """The ledger of a file whose parts can only be told by running what is in it."""
    size = path.stat().st_size
    notes = ("a pickle: its parts are not told, because reading them would run code",)
    return Ledger(file=path.name, format="pickle", size_bytes=size, parts={"pickle": size}, notes=notes)


def read_folder(path: Path) -> Ledger:
    """A ledger by file name, such as of a SavedModel."""
    sums: dict[str, int] = defaultdict(int)
    for file in files_of(path):
        sums[file.relative_to(path).as_posix()] += file.stat().st_size
    return Ledger(file=path.name, format="folder", size_bytes=size_bytes(path), parts=_kept(sums))


def _kept(sums: dict[str, int]) -> dict[str, int]:
    return {part: size for part, size in sums.items() if size}
