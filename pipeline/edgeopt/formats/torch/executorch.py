"""ExecuTorch programs."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files import breakdown
from edgeopt.model import Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format, LayerView


class Executorch(Format):
    """A flatbuffer with the compiled blobs of its delegates, https://docs.pytorch.org/executorch.

    These blobs are opaque: files are compared byte by byte, and layers in the exported program.
    """

    title: ClassVar[str] = "an ExecuTorch program (.pte)"
    suffixes: ClassVar[tuple[str, ...]] = (".pte",)
    artifact: ClassVar[bool] = True
    order: ClassVar[int] = 40
    runtime: ClassVar[str | None] = "executorch"
    library: ClassVar[str] = "executorch"
    layers: ClassVar[LayerView | None] = LayerView(
        "exported_program", ("exported_program_xnnpack", "exported_program"), "torch"
    )

    def recognises(self, file: FileHead) -> bool:
        return file.start[4:6] == b"ET" and file.start[6:8].isdigit()

    def read(self, path: Path, *, trust: bool) -> Source:
        return Source(model=Model(format=self.name, path=path))

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_executorch(path)
