"""Keras 2 models, loaded with tf_keras: HDF5 files, and SavedModels with a Keras configuration."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.keras.files import breakdown, single_file
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format


class TfKeras(Format):
    """An HDF5 file; if Keras 3 wrote it, the format of the model is ``keras``."""

    title: ClassVar[str] = "an HDF5 file (.h5)"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")
    runtime: ClassVar[str | None] = "keras"

    def recognises(self, file: FileHead) -> bool:
        return file.start.startswith(b"\x89HDF\r\n\x1a\n")

    def read(self, path: Path, *, trust: bool) -> Source:
        return single_file.read_hdf5(path, trust)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return super().breakdown(path) if path.is_dir() else breakdown.read_hdf5(path, self.name)
