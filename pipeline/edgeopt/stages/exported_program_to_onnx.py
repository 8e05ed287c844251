"""An exported program to float ONNX, through ``torch.onnx``."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import calls
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab.isolation import TRIED, isolated
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule


class ExportedProgramToOnnx(Stage):
    """Convert to float32 ONNX: a single file of batch 1, optimized, without export metadata.

    Layers keep the names of the source, with ``_`` for ``.``, where their weights identify them.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "onnx"
    worker: ClassVar[Worker] = "torch"
    cost: ClassVar[int] = 3
    requires: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript", "torchao")
    extra: ClassVar[str | None] = "torch,onnx"
    revision: ClassVar[int] = 4

    def run(self, model: Model, context: Context) -> Model:
        """Convert one program.

        Raises:
            StageError: the program cannot be read, or contains an operator that ONNX does not support.
        """
        import onnx

        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        context.progress("converting to ONNX")
        names = {"input_names": [s.name for s in inputs], "output_names": [s.name for s in outputs]}
        try:
            proto = _convert(graph, torch_specs.zeros(inputs), **names)
        except StageError as error:
            raise _explained(error, graph, torch_specs.zeros(inputs)) from error
        _strip_metadata(proto)
        onnx_model_file.share_constants(proto)
        _name_layers(proto.graph)
        _name_recurrent(proto.graph, graph)
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


def _convert(module: "torch.nn.Module", inputs: "tuple[torch.Tensor, ...]", **names: list[str]) -> Any:
    """The ONNX model of a module.

    Raises:
        StageError: torch.onnx does not support it.
    """
    import torch

    try:
        with torch_engine.quiet(), torch.no_grad():
            program = torch.export.export(module, inputs)
            exported = torch.onnx.export(
                program, dynamo=True, external_data=False, optimize=True, verbose=False, **names
            )
    except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer ones only say how to report it to PyTorch
            cause = cause.__cause__
        raise StageError(torch_engine.brief(cause)) from error
    assert exported is not None
    return exported.model_proto


def _explained(error: StageError, graph: "GraphModule", inputs: "tuple[torch.Tensor, ...]") -> StageError:
    """The error with the first operator that cannot be converted alone; the whole error if all can."""
    fix = (
        "replace this operator in the model, compute it outside of the model, or leave onnx out of 'formats'"
    )
    for alone in islice(isolated(graph, inputs), TRIED):
        try:
            _convert(alone.module, alone.inputs)
        except StageError as cause:
            return StageError(f"{alone.label} cannot be converted to ONNX: {cause.message}", fix=fix)
    return StageError(f"torch.onnx cannot convert the model: {error.message}", fix=fix)


def _strip_metadata(proto: Any) -> None:
    """Remove metadata on the origin of each operator: they contain local paths and stack traces."""
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
    """Name convolutions and matrix products after the layers that own their weights."""
    constants = {tensor.name for tensor in graph.initializer}
    layers = [
        (node, layer)
        for node in graph.node
        if node.op_type in onnx_model_file.WEIGHTED and node.input[1] in constants
        if (layer := torch_layers.layer_of(node.input[1]))
    ]
    for (node, _), name in zip(layers, calls(layer for _, layer in layers), strict=True):
        node.name = name


def _name_recurrent(proto: Any, graph: "GraphModule") -> None:
    """Name recurrent operators after their layers; those of a stack are ``NAME/l0`` and so on."""
    nodes = [node for node in proto.node if node.op_type in onnx_layers.RECURRENT]
    names = torch_recurrent.layer_names(graph)
    if len(nodes) == len(names):
        for node, name in zip(nodes, names, strict=True):
            node.name = name
