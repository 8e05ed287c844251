"""PyTorch exported programs: a graph of ATen operators with its weights."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files import breakdown, header, untrusted
from edgeopt.model import Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format
from edgeopt.plugin.layer_pair import Pair


class ExportedProgram(Format):
    """An archive written by ``torch.export.save``."""

    title: ClassVar[str] = "a torch exported program (.pt2)"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    runtime: ClassVar[str | None] = "torch"

    def recognises(self, file: FileHead) -> bool:
        inner = file.inner_members
        return "archive_format" in inner or "serialized_exported_program.json" in file.members | inner

    def read(self, path: Path, *, trust: bool) -> Source:
        source = header.read(path)
        return replace(source, notes=(*source.notes, *untrusted.notes(path, trust)))

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_archive(path, self.name)

    def weight_names(self, path: Path) -> tuple[str, ...]:
        return header.weight_names(path)

    def open_layers(self, reference: Model, quantized: Model) -> Pair:
        from edgeopt.formats.torch.lab.paired_layers import TorchPair

        return TorchPair(reference, quantized)
