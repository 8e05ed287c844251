"""Safetensors: weights without a network and without executable content."""

from collections import defaultdict
from math import prod
from pathlib import Path
from typing import ClassVar

from edgeopt.formats.wire.safetensors import read_header
from edgeopt.plugin.contents import SizeBreakdown
from edgeopt.plugin.format import FileHead, Format


class Safetensors(Format):
    """A JSON header followed by the tensor data, https://huggingface.co/docs/safetensors."""

    title: ClassVar[str] = "a safetensors file (.safetensors)"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    weights_only: ClassVar[bool] = True

    def recognises(self, file: FileHead) -> bool:
        return file.start[8:9] == b"{" and 2 <= int.from_bytes(file.start[:8], "little") <= file.size - 8

    def check_weights(self, path: Path, *, trust: bool) -> tuple[str, ...]:
        read_header(path)
        return ()

    def weight_shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        entries, _ = read_header(path)
        return {name: tuple(entry["shape"]) for name, entry in entries.items()}

    def breakdown(self, path: Path) -> SizeBreakdown:
        entries, begin = read_header(path)
        counts: dict[str, int] = defaultdict(int, header=begin)
        for entry in entries.values():
            start, end = entry["data_offsets"]
            counts[f"weights {entry['dtype']}"] += end - start
        size = path.stat().st_size
        counts["padding"] = size - sum(counts.values())
        return SizeBreakdown(
            file=path.name,
            format=self.name,
            size_bytes=size,
            parts={part: count for part, count in counts.items() if count},
            parameters=sum(prod(entry["shape"]) for entry in entries.values()),
        )
