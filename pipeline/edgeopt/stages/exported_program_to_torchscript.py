"""An exported program to a full TorchScript module."""

from typing import ClassVar

from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class ExportedProgramToTorchscript(Stage):
    """Trace the program at a batch of 1 and freeze it."""

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "torchscript_module"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 2

    def run(self, model: Model, context: Context) -> Model:
        """Trace one program.

        Raises:
            StageError: the program cannot be read.
        """
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        path = context.folder / "model.pt"
        torch_script.save_script(torch_script.trace(graph, inputs), path)
        return Model(format="torchscript_module", path=path, inputs=inputs, outputs=outputs)
