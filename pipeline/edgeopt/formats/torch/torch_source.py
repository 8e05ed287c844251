"""A PyTorch model as its author provides it: a function that builds the module, and a weights file."""

from typing import ClassVar

from edgeopt.plugin.format import Format


class TorchSource(Format):
    """The source declared by ``model: {factory: ..., weights: ...}`` in a recipe."""

    title: ClassVar[str] = "weights of a PyTorch module, with the code that builds it"
    from_factory: ClassVar[bool] = True
    needs_code: ClassVar[bool] = True
