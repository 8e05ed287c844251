"""A PyTorch module between two stages: a folder with its factory, its weights and the changes made to it."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from edgeopt.formats.torch.files.module import WEIGHTS
from edgeopt.formats.wire.safetensors import read_header
from edgeopt.model import Array, Model
from edgeopt.plugin.format import Format
from edgeopt.plugin.stage import Worker
from edgeopt.plugin.synthesis import Synthesis


class Torch(Format):
    """Written and read by `edgeopt.formats.torch.files.module`."""

    title: ClassVar[str] = "a PyTorch module with its weights"
    needs_code: ClassVar[bool] = True
    runtime: ClassVar[str | None] = "torch"
    synthesizes: ClassVar[Worker | None] = "torch"

    def weight_names(self, path: Path) -> tuple[str, ...]:
        return tuple(read_header(path / WEIGHTS)[0])

    def synthesize(self, model: Model, given: Synthesis, progress: Callable[[float], None]) -> list[Array]:
        from edgeopt.formats.torch.files.module import build
        from edgeopt.formats.torch.train.synthesis import synthesize

        return synthesize(build(model), given.starts, given.steps, progress)
