"""A PyTorch module between two stages: a folder with its factory, its weights and the changes made to it."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files.module import WEIGHTS
from edgeopt.formats.wire.safetensors import read_header
from edgeopt.plugin.format import Format


class Torch(Format):
    """Written and read by `edgeopt.formats.torch.files.module`."""

    title: ClassVar[str] = "a PyTorch module with its weights"
    needs_code: ClassVar[bool] = True
    runtime: ClassVar[str | None] = "torch"

    def weight_names(self, path: Path) -> tuple[str, ...]:
        return tuple(read_header(path / WEIGHTS)[0])
