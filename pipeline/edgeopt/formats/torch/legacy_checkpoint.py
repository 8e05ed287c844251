"""PyTorch checkpoints from before torch 1.6: a sequence of pickles."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files import breakdown, weight_shapes, weights
from edgeopt.plugin.contents import SizeBreakdown
from edgeopt.plugin.format import FileHead, Format

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle: torch's magic number in protocol 2."""


class LegacyCheckpoint(Format):
    """A stream written by ``torch.save(..., _use_new_zipfile_serialization=False)``."""

    title: ClassVar[str] = "a torch checkpoint in the pre-1.6 format (.pt, .pth, .th)"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".th")
    weights_only: ClassVar[bool] = True

    def recognises(self, file: FileHead) -> bool:
        return file.start.startswith(MAGIC)

    def check_weights(self, path: Path, *, trust: bool) -> tuple[str, ...]:
        return weights.check_pickles(path, trust=trust, legacy=True)

    def weight_shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        return weight_shapes.read(path, legacy=True)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_stream(path, self.name)
