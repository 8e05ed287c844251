"""An exported program as a full TorchScript module."""

from typing import ClassVar

from edgeopt.formats import torch_program
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class ExportedProgramToTorchscript(Stage):
    """Trace the program at a batch of 1 and freeze it."""

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "torchscript_module"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    def run(self, model: Model, context: Context) -> Model:
        """Trace one program.

        Raises:
            StageError: when the program cannot be read.
        """
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_program.describe_outputs(torch_program.run(graph, inputs), model.outputs)
        path = context.folder / "model.pt"
        torch_program.save_script(torch_program.trace(graph, inputs), path)
        return Model(format="torchscript_module", path=path, inputs=inputs, outputs=outputs)
