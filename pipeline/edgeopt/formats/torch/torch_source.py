"""A PyTorch model as its author gives it: a function that builds the module, and a file of weights."""

from typing import ClassVar

from edgeopt.plugin.format import Format


class TorchSource(Format):
    """What ``model: {factory: ..., weights: ...}`` in a recipe stands for."""

    title: ClassVar[str] = "weights of a PyTorch module, with the code that builds it"
    from_factory: ClassVar[bool] = True
    needs_code: ClassVar[bool] = True
