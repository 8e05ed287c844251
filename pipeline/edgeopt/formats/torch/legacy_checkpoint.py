"""Checkpoints of PyTorch before 1.6: pickles one after the other."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files import breakdown, weights
from edgeopt.plugin.contents import SizeBreakdown
from edgeopt.plugin.format import FileHead, Format

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle: protocol 2, and torch's magic number."""


class LegacyCheckpoint(Format):
    """A stream, as ``torch.save(..., _use_new_zipfile_serialization=False)`` writes it."""

    title: ClassVar[str] = "a torch checkpoint in the format before 1.6 (.pt, .pth, .th)"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".th")
    weights_only: ClassVar[bool] = True

    def recognises(self, file: FileHead) -> bool:
        return file.start.startswith(MAGIC)

    def check_weights(self, path: Path, *, trust: bool) -> tuple[str, ...]:
        return weights.check_pickles(path, trust=trust, legacy=True)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_stream(path, self.name)
