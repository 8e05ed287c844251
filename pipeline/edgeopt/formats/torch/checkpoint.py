"""PyTorch checkpoints in the zip format of torch 1.6 and later: weights without a network."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files import breakdown, weight_shapes, weights
from edgeopt.plugin.contents import SizeBreakdown
from edgeopt.plugin.format import FileHead, Format


class Checkpoint(Format):
    """A zip archive written by ``torch.save``."""

    title: ClassVar[str] = "a torch checkpoint (.pt, .pth)"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth")
    weights_only: ClassVar[bool] = True

    def recognises(self, file: FileHead) -> bool:
        inner = file.inner_members
        return "data.pkl" in inner and not inner & {"constants.pkl", "bytecode.pkl", "archive_format"}

    def check_weights(self, path: Path, *, trust: bool) -> tuple[str, ...]:
        return weights.check_pickles(path, trust=trust, legacy=False)

    def weight_shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        return weight_shapes.read(path, legacy=False)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_archive(path, self.name)
