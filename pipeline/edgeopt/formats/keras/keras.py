"""Keras 3 models in ``.keras`` archives."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.keras.files import breakdown, single_file
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format


class Keras(Format):
    """A zip archive with configuration and weights, as written by ``model.save("model.keras")``."""

    title: ClassVar[str] = "a Keras archive (.keras)"
    suffixes: ClassVar[tuple[str, ...]] = (".keras",)
    runtime: ClassVar[str | None] = "keras"

    def recognises(self, file: FileHead) -> bool:
        return not file.is_folder and bool(file.members & single_file.MEMBERS)

    def read(self, path: Path, *, trust: bool) -> Source:
        return single_file.read_archive(path, trust)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_archive(path, self.name)
