"""An exported program as float ONNX, through torch's own exporter."""

from typing import Any, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import calls
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class ExportedProgramToOnnx(Stage):
    """Convert to float32 ONNX: one file, batch 1, optimized, nothing in it but the model.

    Layers are called as in the source, with ``_`` for ``.``, as far as their weights tell.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "onnx"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript", "torchao")
    extra: ClassVar[str | None] = "torch,onnx"
    revision: ClassVar[int] = 2

    def run(self, model: Model, context: Context) -> Model:
        """Convert one program.

        Raises:
            StageError: when the program cannot be read, or has an operator that ONNX does not know.
        """
        import onnx
        import torch

        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        context.progress("converting to ONNX")
        names = {"input_names": [s.name for s in inputs], "output_names": [s.name for s in outputs]}
        try:
            with torch_engine.quiet(), torch.no_grad():
                program = torch_program.export(graph, inputs)
                exported = torch.onnx.export(
                    program, dynamo=True, external_data=False, optimize=True, verbose=False, **names
                )
        except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise StageError(
                f"torch.onnx cannot convert the model: {torch_engine.brief(error)}",
                fix="replace the operator it names, or leave onnx out of 'formats'",
            ) from error
        assert exported is not None
        proto = exported.model_proto
        _bare(proto)
        _name_layers(proto.graph)
        path = context.folder / "model.onnx"
        path.write_bytes(proto.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path), full_check=True)
        found_inputs, found_outputs = onnx_model_file.specs(proto)
        return Model(
            format="onnx",
            path=path,
            inputs=tuple(
                spec.model_copy(update={"layout": source.layout})
                for spec, source in zip(found_inputs, inputs, strict=True)
            ),
            outputs=tuple(
                spec.model_copy(update={"layout": source.layout})
                for spec, source in zip(found_outputs, outputs, strict=True)
            ),
            transposes=onnx_model_file.count(proto, "Transpose"),
        )


def _bare(proto: Any) -> None:
    """Remove notes of where each operator came from: they hold paths and stack traces."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for item in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]


def _name_layers(graph: Any) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    found = [
        (node, layer)
        for node in graph.node
        if node.op_type in onnx_model_file.WEIGHTED and node.input[1] in constants
        if (layer := torch_layers.layer_of(node.input[1]))
    ]
    for (node, _), name in zip(found, calls(layer for _, layer in found), strict=True):
        node.name = name
