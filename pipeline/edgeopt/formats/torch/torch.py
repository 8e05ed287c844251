"""A PyTorch module between two stages: its factory, weights, and the changes made to it, in a folder."""

from typing import ClassVar

from edgeopt.plugin.format import Format


class Torch(Format):
    """Written and read by `edgeopt.formats.torch.files.module`."""

    title: ClassVar[str] = "a PyTorch module with its weights"
    needs_code: ClassVar[bool] = True
    runtime: ClassVar[str | None] = "torch"
