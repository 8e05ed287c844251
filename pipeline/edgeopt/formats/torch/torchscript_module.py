"""TorchScript modules, run by PyTorch itself."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.specs import UNDECLARED
from edgeopt.formats.torch.files import breakdown, untrusted
from edgeopt.model import Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format


class TorchscriptModule(Format):
    """An archive written by ``torch.jit.save``."""

    title: ClassVar[str] = "a TorchScript module (.pt)"
    suffixes: ClassVar[tuple[str, ...]] = (".pt",)
    tells_inputs: ClassVar[bool] = False
    runtime: ClassVar[str | None] = "torchscript"

    def recognises(self, file: FileHead) -> bool:
        inner = file.inner_members
        code = any(name.startswith("code/") for name in inner)
        return code and "constants.pkl" in inner and "bytecode.pkl" not in inner

    def read(self, path: Path, *, trust: bool) -> Source:
        return Source(
            model=Model(format=self.name, path=path),
            framework="torch",
            notes=(UNDECLARED, *untrusted.notes(path, trust)),
        )

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_archive(path, self.name)
