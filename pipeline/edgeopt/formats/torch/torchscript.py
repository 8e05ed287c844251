"""TorchScript for mobile devices: files of PyTorch's lite interpreter."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.semantic_graph import digest
from edgeopt.formats.torch.files import breakdown, untrusted
from edgeopt.formats.torch.files.archive import member_digests
from edgeopt.model import Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format


class Torchscript(Format):
    """An archive with bytecode.

    Two files are equivalent if their members are equal; timestamps, the archive's name, its serialization
    id and debug records do not count.
    """

    title: ClassVar[str] = "a TorchScript file for the lite interpreter (.ptl)"
    suffixes: ClassVar[tuple[str, ...]] = (".ptl",)
    artifact: ClassVar[bool] = True
    order: ClassVar[int] = 30
    tells_inputs: ClassVar[bool] = False
    runtime: ClassVar[str | None] = "torchscript"
    library: ClassVar[str] = "pytorch"
    no_layers: ClassVar[str] = "its int8 operators are packed"
    twin: ClassVar[str] = "executorch"

    def recognises(self, file: FileHead) -> bool:
        return "bytecode.pkl" in file.inner_members

    def read(self, path: Path, *, trust: bool) -> Source:
        return Source(model=Model(format=self.name, path=path), notes=untrusted.notes(path, trust))

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_archive(path, self.name)

    def semantic_digest(self, path: Path) -> str:
        return digest(self.name, *sorted(member_digests(path).items()))

    def first_difference(self, before: Path, after: Path) -> str:
        old, new = member_digests(before), member_digests(after)
        return next((f"member {n}" for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)), "")
