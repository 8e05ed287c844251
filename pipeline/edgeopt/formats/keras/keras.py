"""Keras 3 models in ``.keras`` archives."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from edgeopt.formats.keras.files import breakdown, single_file
from edgeopt.model import Array, Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format
from edgeopt.plugin.stage import Worker
from edgeopt.plugin.synthesis import Synthesis


class Keras(Format):
    """A zip archive with configuration and weights, as written by ``model.save("model.keras")``."""

    title: ClassVar[str] = "a Keras archive (.keras)"
    suffixes: ClassVar[tuple[str, ...]] = (".keras",)
    runtime: ClassVar[str | None] = "keras"
    synthesizes: ClassVar[Worker | None] = "tensorflow"

    def recognises(self, file: FileHead) -> bool:
        return not file.is_folder and bool(file.members & single_file.MEMBERS)

    def read(self, path: Path, *, trust: bool) -> Source:
        return single_file.read_archive(path, trust)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read_archive(path, self.name)

    def synthesize(self, model: Model, given: Synthesis, progress: Callable[[float], None]) -> list[Array]:
        from edgeopt.formats.keras.files.loading import load_keras
        from edgeopt.formats.keras.train.synthesis import synthesize

        network = load_keras(model.path, given.trust, model.code)
        return synthesize(network, given.starts, given.steps, progress)
