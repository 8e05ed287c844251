"""Size breakdown of Keras files."""

from pathlib import Path

from edgeopt.formats.keras.files import hdf5
from edgeopt.formats.wire.archive import member_sizes
from edgeopt.plugin.contents import SizeBreakdown

_SIZES = """
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


def read_archive(path: Path, format_name: str) -> SizeBreakdown:
    """Break a ``.keras`` archive down by member.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
        ValueError: the archive has too many members.
    """
    parts = member_sizes(path, lambda member: member.partition("/")[2] or member)
    return SizeBreakdown(file=path.name, format=format_name, size_bytes=path.stat().st_size, parts=parts)


def read_hdf5(path: Path, format_name: str) -> SizeBreakdown:
    """Break an HDF5 file down by kind and type of dataset.

    Raises:
        MissingPackageError: h5py is not installed.
        ValueError: the file cannot be read.
    """
    sizes, parameters = hdf5.ask(path, _SIZES)
    size = path.stat().st_size
    sizes["structure and padding"] = size - sum(sizes.values())
    parts = {part: count for part, count in sizes.items() if count}
    return SizeBreakdown(
        file=path.name, format=format_name, size_bytes=size, parts=parts, parameters=parameters or None
    )
