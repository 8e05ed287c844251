"""An exported program to float TFLite, through litert-torch."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.naming import with_output_names
from edgeopt.formats.tflite.graph import interpreter as tflite_interpreter
from edgeopt.formats.tflite.graph import loops as tflite_loops
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.graph.litert.rewriting import for_tflite
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab.isolation import TRIED, isolated
from edgeopt.formats.torch.quantize import named_layers as torch_named_layers
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

FAILURES = (
    *(RuntimeError, ValueError, NotImplementedError, KeyError, TypeError),
    *(AssertionError, AttributeError, IndexError),
)
"""Exceptions of litert-torch for operators that it does not support."""


class ExportedProgramToTflite(Stage):
    """Convert to float32 TFLite. NCHW image inputs become NHWC, the layout of TFLite's kernels.

    Layers keep the names of the source, with ``_`` for ``.``, where their weights identify them.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "tflite"
    worker: ClassVar[Worker] = "torch"
    cost: ClassVar[int] = 8
    requires: ClassVar[tuple[str, ...]] = ("torch", "litert-torch", "ai-edge-litert", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 4

    def run(self, model: Model, context: Context) -> Model:
        """Convert one program.

        Raises:
            StageError: the program cannot be read, or litert-torch does not support an operator.
        """
        graph, inputs = torch_program.plain_graph(model)
        graph = for_tflite(graph, torch_specs.zeros(inputs), [spec.name for spec in inputs])
        graph = torch_recurrent.with_loops(graph)
        context.progress("converting to TFLite")
        with torch_engine.quiet():
            tflite_loops.register(torch_recurrent.step_loop())
        transposed = [
            index for index, spec in enumerate(inputs) if spec.layout == "NCHW" and len(spec.shape) == 4
        ]
        specs = tuple(_nhwc(spec) if index in transposed else spec for index, spec in enumerate(inputs))
        named = torch_named_layers.with_named_layers(graph)
        path = context.folder / "model.tflite"
        try:
            _convert(named, torch_specs.zeros(specs), transposed, path)
        except StageError as error:
            raise _explained(error, graph, torch_specs.zeros(inputs), path) from error
        _keep_names(path, model.outputs)
        return _describe(path, specs, model)


def _convert(
    module: "torch.nn.Module", inputs: "tuple[torch.Tensor, ...]", transposed: Sequence[int], path: Path
) -> None:
    """Write a file and run it once; inputs number ``transposed`` become NHWC.

    Raises:
        StageError: litert-torch does not support the module, or LiteRT cannot run what it wrote.
    """
    with torch_engine.quiet():
        import litert_torch

        try:
            if transposed:
                module = litert_torch.to_channel_last_io(module, args=list(transposed))
            converted = litert_torch.convert(module.eval(), inputs)
            tflite_loops.outline(converted)
            converted.export(str(path))
        except FAILURES as error:
            raise StageError(torch_engine.brief(error)) from error
    tflite_interpreter.outputs(path, [tuple(value.numpy() for value in inputs)])


def _explained(
    error: StageError, graph: "GraphModule", inputs: "tuple[torch.Tensor, ...]", path: Path
) -> StageError:
    """The error with the first operator that cannot be converted alone; the whole error if all can."""
    for alone in islice(isolated(graph, inputs), TRIED):
        try:
            _convert(alone.module, alone.inputs, (), path)
        except StageError as cause:
            return StageError(
                f"{alone.label} cannot be converted to TFLite: {cause.message}"
                + (f"\n  {alone.line}" if alone.line else ""),
                fix="replace this operator in the model, compute it outside of the model, or leave tflite "
                "out of 'formats'",
            )
    return StageError(
        f"litert-torch cannot convert the model to TFLite: {error.message}",
        fix="replace the unsupported operator, or leave tflite out of 'formats'",
    )


def _keep_names(path: Path, outputs: Sequence[TensorSpec]) -> None:
    """Give the outputs in the file the names that the model has for them, which litert-torch numbers."""
    names = [spec.name for spec in outputs]
    if names not in (["output"], [f"output_{index}" for index in range(len(names))]):
        path.write_bytes(with_output_names(load(path), names))


def _nhwc(spec: TensorSpec) -> TensorSpec:
    batch, channels, height, width = spec.shape
    return spec.model_copy(update={"shape": (batch, height, width, channels), "layout": "NHWC"})


def _describe(path: Path, specs: tuple[TensorSpec, ...], model: Model) -> Model:
    signature = read_signature(path)
    shapes, expected = [spec.shape for spec in signature.inputs], [spec.shape for spec in specs]
    if shapes != expected:
        raise StageError(f"litert-torch wrote a model with the input shapes {shapes}, expected {expected}")
    inputs = tuple(
        spec.model_copy(update={"layout": source.layout})
        for spec, source in zip(signature.inputs, specs, strict=True)
    )
    outputs = signature.outputs
    if len(outputs) == len(model.outputs):
        outputs = tuple(
            spec.model_copy(update={"layout": source.layout})
            for spec, source in zip(outputs, model.outputs, strict=True)
        )
    transposes = signature.graph.count("TRANSPOSE")
    return Model(format="tflite", path=path, inputs=inputs, outputs=outputs, transposes=transposes)
