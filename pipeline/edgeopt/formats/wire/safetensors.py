"""The header of a safetensors file: https://huggingface.co/docs/safetensors"""

from pathlib import Path
from typing import Any

from edgeopt.formats.wire import bounded


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries by tensor (dtype, shape, data_offsets), and where the tensors begin in the file.

    Raises:
        ValueError: it is damaged, or a tensor lies outside of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = bounded.json_value(file.read(min(length, bounded.JSON_LIMIT + 1)), "the header")
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping of tensors")
    entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= size - 8 - length:
            raise ValueError(f"tensor {name!r} lies outside of the file")
    return entries, 8 + length
