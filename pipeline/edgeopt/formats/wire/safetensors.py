"""The header of a safetensors file: https://huggingface.co/docs/safetensors"""

from pathlib import Path

from edgeopt.formats.wire import bounded


def check(path: Path) -> None:
    """Hold the header (8 bytes of length, then JSON of name -> dtype, shape, data_offsets) against the file.

    Raises:
        ValueError: it is damaged, or a tensor lies outside of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = bounded.json_value(file.read(min(length, bounded.JSON_LIMIT + 1)), "the header")
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"tensor {name!r} lies outside of the file")
