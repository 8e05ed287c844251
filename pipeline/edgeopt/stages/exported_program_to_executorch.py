"""An exported program, float or quantized, as an ExecuTorch program for XNNPACK."""

from typing import ClassVar

from edgeopt.formats.torch.files import lowering as torch_lowering
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.graph import operators as torch_operators
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.graph.executorch import for_executorch
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class ExportedProgramToExecutorch(Stage):
    """Lower with the XNNPACK partitioner; operators that XNNPACK does not support run on portable kernels.

    Transposes are counted before lowering: those between NCHW and XNNPACK's own layout, inside the
    delegated subgraphs, are not included.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program", "exported_program_xnnpack"})
    produces: ClassVar[str] = "executorch"
    worker: ClassVar[Worker] = "torch"
    cost: ClassVar[int] = 8
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"
    revision: ClassVar[int] = 7

    def run(self, model: Model, context: Context) -> Model:
        """Lower one program.

        Raises:
            StageError: the program cannot be read or lowered, or XNNPACK would run a quantized layer in
                float.
        """
        if model.format == "exported_program_xnnpack":
            program = torch_program.read(model.path)
            inputs = torch_specs.describe_inputs(program, model.inputs)
            graph = program.module(check_guards=False)
        else:
            graph, inputs = torch_program.plain_graph(model)
            graph = torch_recurrent.with_loops(for_executorch(graph, inputs))
            torch_recurrent.to_scans(graph)
            program = torch_program.export(torch_layers.separate_weights(graph), inputs)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        transposes = torch_operators.count_transposes(graph.graph)
        context.progress("lowering to XNNPACK")
        path = context.folder / "model.pte"
        path.write_bytes(torch_lowering.lower(program))
        return Model(format="executorch", path=path, inputs=inputs, outputs=outputs, transposes=transposes)
