"""TensorFlow's SavedModel: a folder with a graph and, optionally, the configuration of a Keras model."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.keras.files import saved_model_folder
from edgeopt.plugin.contents import Source
from edgeopt.plugin.format import FileHead, Format


class SavedModel(Format):
    """A folder with ``saved_model.pb``; with a complete Keras model inside, the format is ``tf_keras``."""

    title: ClassVar[str] = "a SavedModel folder (with saved_model.pb)"
    runtime: ClassVar[str | None] = "keras"
    advice: ClassVar[str] = "save the model as a functional .keras file: its layers can be rebuilt in PyTorch"

    def recognises(self, file: FileHead) -> bool:
        return file.is_folder and saved_model_folder.GRAPH in file.members

    def read(self, path: Path, *, trust: bool) -> Source:
        return saved_model_folder.read(path, trust)
