"""Bare pickles: neither a model nor weights that can be read without running code."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files import breakdown
from edgeopt.formats.torch.legacy_checkpoint import MAGIC
from edgeopt.plugin.contents import SizeBreakdown
from edgeopt.plugin.format import FileHead, Format


class Pickle(Format):
    """A file written by ``pickle.dump``."""

    title: ClassVar[str] = "a bare Python pickle"

    def recognises(self, file: FileHead) -> bool:
        start = file.start
        return len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5 and not start.startswith(MAGIC)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_stream(path, self.name)
