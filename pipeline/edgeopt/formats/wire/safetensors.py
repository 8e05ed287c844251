"""The header of a safetensors file: https://huggingface.co/docs/safetensors"""

from pathlib import Path
from typing import Any

from edgeopt.formats.wire import bounded


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header entries by tensor name (dtype, shape, data_offsets), and the offset of the tensor data.

    Raises:
        ValueError: the header is damaged, or a tensor extends beyond the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = bounded.json_value(file.read(min(length, bounded.JSON_LIMIT + 1)), "the header")
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping of tensors")
    entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= size - 8 - length:
            raise ValueError(f"tensor {name!r} extends beyond the file")
    return entries, 8 + length
