"""A PyTorch module as an exported program."""

import json
from typing import TYPE_CHECKING, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats import torch_program
from edgeopt.model import Model
from edgeopt.plugin import Code, Context, Stage, Worker

if TYPE_CHECKING:
    import torch


class TorchToExportedProgram(Stage):
    """Export with ``torch.export`` at a batch of 1, batch norm folded into the layers before it."""

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    produces: ClassVar[str] = "exported_program"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors", "torchao")
    extra: ClassVar[str | None] = "torch"

    def run(self, model: Model, context: Context) -> Model:
        """Export one model.

        Raises:
            StageError: when ``torch.export`` cannot follow the module.
        """
        module = _build(model)
        context.progress("exporting")
        return torch_program.save_module(module, context.folder / "model.pt2", model, model.inputs)


def _build(model: Model) -> "torch.nn.Module":
    import torch
    from safetensors.torch import load_file

    described = json.loads((model.path / "model.json").read_text())
    torch.manual_seed(0)
    module = Code(**described["factory"]).load()(**described["arguments"])
    if not isinstance(module, torch.nn.Module):
        raise StageError(
            f"{described['factory']['target']} returned a {type(module).__name__}, not a torch.nn.Module"
        )
    module.load_state_dict(load_file(model.path / "weights.safetensors"))
    return module.eval()
