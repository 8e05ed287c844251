"""Keras 2 models, loaded with tf_keras: HDF5 files, and SavedModels with a Keras configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from edgeopt.formats.keras.files import breakdown, single_file
from edgeopt.model import Array, Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format
from edgeopt.plugin.stage import Worker
from edgeopt.plugin.synthesis import Synthesis


class TfKeras(Format):
    """An HDF5 file; if Keras 3 wrote it, the format of the model is ``keras``."""

    title: ClassVar[str] = "an HDF5 file (.h5)"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")
    runtime: ClassVar[str | None] = "keras"
    synthesizes: ClassVar[Worker | None] = "tensorflow"

    def recognises(self, file: FileHead) -> bool:
        return file.start.startswith(b"\x89HDF\r\n\x1a\n")

    def read(self, path: Path, *, trust: bool) -> Source:
        return single_file.read_hdf5(path, trust)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return super().breakdown(path) if path.is_dir() else breakdown.read_hdf5(path, self.name)

    def synthesize(self, model: Model, given: Synthesis, progress: Callable[[float], None]) -> list[Array]:
        from edgeopt.formats.keras.files.loading import load_tf_keras
        from edgeopt.formats.keras.train.synthesis import synthesize

        network = load_tf_keras(model.path, given.trust, model.code)
        return synthesize(network, given.starts, given.steps, progress)
