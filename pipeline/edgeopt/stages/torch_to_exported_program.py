"""A PyTorch module to an exported program."""

from typing import ClassVar

from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class TorchToExportedProgram(Stage):
    """Export with ``torch.export`` at a batch of 1; batch norm is folded into the preceding layers."""

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    produces: ClassVar[str] = "exported_program"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 4

    def run(self, model: Model, context: Context) -> Model:
        """Export one model.

        Raises:
            StageError: ``torch.export`` cannot trace the module; the message names the line of its code.
        """
        module = torch_module.build(model)
        context.progress("exporting")
        path = context.folder / "model.pt2"
        return torch_program.save_module(module, path, model, model.inputs, note=context.note)
